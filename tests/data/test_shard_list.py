"""Finding shards by URL, brace range and wildcard."""

from pathlib import Path

import pytest

from pipeline.data import shard_list, shards
from pipeline.errors import MissingError, RecipeError
from pipeline.storage import Storage
from tests.samples import sample, write_shard


def test_shards_are_found_by_brace_range_wildcard_and_list(store_url: str) -> None:
    storage = Storage(store_url, create=True)
    for name in (
        "val-0000.tar",
        "val-0001.tar",
        "val-0002.tar",
        "notes.txt",
        "deeper/val-0003.tar",
        "again/val-0000.tar",
    ):
        storage.put(name, b"x" * 7)
    braces = shard_list.find_shards([f"{storage.url}/val-{{0000..0001}}.tar"])
    assert [(shard.name, shard.size_bytes) for shard in braces] == [("val-0000", 7), ("val-0001", 7)]
    assert [shard.name for shard in shard_list.find_shards([f"{storage.url}/*.tar"])] == [
        "val-0000",
        "val-0001",
        "val-0002",
    ]
    listed = shard_list.find_shards([f"{storage.url}/val-0002.tar", f"{storage.url}/val-0000.tar"])
    assert [shard.name for shard in listed] == ["val-0002", "val-0000"]
    with pytest.raises(MissingError, match=r"val-0003\.tar"):
        shard_list.find_shards([f"{storage.url}/val-{{0000..0009}}.tar"])
    with pytest.raises(MissingError, match="test-"):
        shard_list.find_shards([f"{storage.url}/test-*.tar"])
    with pytest.raises(RecipeError, match="is named twice, 'val-0000'"):
        shard_list.find_shards([f"{storage.url}/*.tar", f"{storage.url}/val-0000.tar"])
    with pytest.raises(RecipeError, match="braces do not match"):
        shard_list.find_shards([f"{storage.url}/val-{{0000..0001.tar"])
    with pytest.raises(RecipeError, match=r"gets the same name in results as .*/val-0000\.tar"):
        shard_list.find_shards([f"{storage.url}/val-0000.tar", f"{storage.url}/again/val-0000.tar"])
    with pytest.raises(RecipeError, match=r"not a \.tar"):
        shard_list.find_shards([f"{storage.url}/notes.txt"])
    with pytest.raises(RecipeError, match="file name only"):
        shard_list.find_shards([f"{storage.url}/*/val-0003.tar"])


def test_a_link_into_a_cache_keeps_its_own_name(tmp_path: Path) -> None:
    write_shard(tmp_path / "blobs" / "3f2a", [sample(0)])
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "val-0000.tar").symlink_to("../blobs/3f2a")
    (shard,) = shard_list.find_shards([f"{tmp_path}/snap/val-{{0000..0000}}.tar"])
    assert shard.name == "val-0000"
    with shards.download_shard(shard) as downloaded:
        assert len(downloaded) == 1
