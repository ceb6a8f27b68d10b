"""URLs of stores and objects."""

from pathlib import Path

import pytest

from pipeline.errors import MissingError, RecipeError, StorageError
from pipeline.storage import Storage, absolute_url, split_url


def test_valid_urls_are_accepted_and_others_refused(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    assert Storage(f"file://{tmp_path}/a%20b").url == str(tmp_path / "a b")
    with pytest.raises(MissingError, match="no such folder"):
        Storage(str(tmp_path / "typo"))
    for wrong in (
        "",
        "gs://bucket/x",
        "s3://",
        "s3:///prefix",
        "s3://b//x",
        "s3://b/x//y",
        "file://relative/x",
        "s3:/b/x",
        "s3:b",
        "file:/x",
    ):
        with pytest.raises(RecipeError, match="store"):
            Storage(wrong)
    assert split_url("s3://bucket/a/b.tar") == ("s3://bucket/a", "b.tar")
    assert split_url("b.tar") == (".", "b.tar")
    assert split_url("/b.tar") == ("/", "b.tar")
    assert absolute_url("s3://bucket/a") == "s3://bucket/a"
    assert absolute_url("x") == str(Path.cwd() / "x")
    (tmp_path / "link.tar").symlink_to(tmp_path / "blob")
    assert absolute_url(str(tmp_path / "link.tar")) == str(tmp_path / "link.tar"), "the hub's cache links to blobs"


def test_odd_characters_in_a_url_are_part_of_its_path(tmp_path: Path, s3: dict[str, str]) -> None:
    for url in (f"file://{tmp_path}/a#b?c", "s3://demo/a#b?c+d e"):
        Storage(url, create=True).put("k#1?x=+ é", b"first")
        assert Storage(url).get("k#1?x=+ é") == b"first"
        assert [item.key for item in Storage(url).list()] == ["k#1?x=+ é"]
    assert (tmp_path / "a#b?c" / "k#1?x=+ é").read_bytes() == b"first"


def test_a_file_is_refused_as_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be a store: it is a file"):
        Storage(str(tmp_path / "file"), create=True)
    with pytest.raises(MissingError):
        Storage(str(tmp_path / "file"))
