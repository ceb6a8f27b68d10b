import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import dataset
from pipeline.storage import Storage, sha256
from pipeline.storage.cache import Cache
from tests.conftest import ROOT
from tests.dataset.batches import read_digests


def test_cached_objects_are_not_fetched_again(store: Path, tmp_path: Path) -> None:
    examples = dataset.open(str(store)).examples(cache=tmp_path / "cache", pairs=True)
    first = read_digests(examples)
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert kept == {sha256(path.read_bytes()) for path in (store / "shards").rglob("*.tar")}
    shutil.rmtree(store / "shards")
    assert read_digests(examples) == first


def test_a_cache_stays_within_its_limit_and_drops_the_least_recently_used(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "store"), create=True)
    objects = [bytes([number]) * 100 for number in range(5)]
    for number, data in enumerate(objects):
        storage.put(str(number), data)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mine.txt").write_text("x" * 1000)
    (tmp_path / "cache" / "dangling").symlink_to("nowhere")
    cache = Cache(tmp_path / "cache", limit_bytes=320)

    def read(number: int) -> None:
        assert cache.read(storage, str(number), sha256(objects[number])) == objects[number]

    for number in (0, 1, 2):
        read(number)
    for number in (0, 1, 2):
        os.utime(cache.folder / sha256(objects[number]), (1000 + number, 1000 + number))
    read(0)
    read(3)
    kept = {path.name for path in cache.folder.iterdir()}
    assert kept == {*(sha256(objects[number]) for number in (0, 2, 3)), "mine.txt", "dangling"}
    damaged = cache.folder / sha256(objects[0])
    damaged.write_bytes(b"what?")
    read(0)
    assert damaged.read_bytes() == objects[0]
    small = Cache(tmp_path / "small", limit_bytes=10)
    assert small.read(storage, "0", sha256(objects[0])) == objects[0]
    assert not small.folder.exists()


def test_processes_that_share_a_small_cache_all_finish(filled_store: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline import dataset\n"
        "examples = dataset.open(sys.argv[1]).examples(cache=sys.argv[2], cache_bytes=60_000)\n"
        "for _ in range(10): assert sum(len(batch['keys']) for batch in examples) == 60\n"
    )
    command = [sys.executable, "-c", code, str(filled_store), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in running] == ["", "", ""]
    assert all(len(path.name) == 64 for path in (tmp_path / "cache").iterdir()), "nothing half written is left"


def test_a_cache_that_cannot_be_written_is_ignored_with_a_warning(
    filled_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert len(read_digests(dataset.open(str(filled_store)).examples(cache=tmp_path / "file"))) == 60
    assert "going on without it" in caplog.text
