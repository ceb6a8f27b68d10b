"""Objects and records, on folders and S3."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import IntegrityError, MissingError
from pipeline.storage import Storage, sha256


def test_an_object_is_read_back_and_verified(storage: Storage) -> None:
    storage.put("a/b/c.bin", b"bytes")
    assert storage.get("a/b/c.bin", sha256_hex=sha256(b"bytes")) == b"bytes"
    assert [(item.key, item.size_bytes) for item in storage.list("a")] == [("a/b/c.bin", 5)]
    storage.put("a/b/c.bin", b"other")
    with pytest.raises(IntegrityError, match=r"a/b/c\.bin: damaged"):
        storage.get("a/b/c.bin", sha256_hex=sha256(b"bytes"))


def test_a_missing_object_is_named_in_the_error(storage: Storage) -> None:
    with pytest.raises(MissingError, match="nothing/here: no such object"):
        storage.get("nothing/here")


def test_a_listing_has_every_object_below_a_folder(storage: Storage) -> None:
    for key in ("x/1", "x/y/2", "xz/3"):
        storage.put(key, key.encode())
    assert {item.key for item in storage.list("x")} == {"x/1", "x/y/2"}
    assert {item.key: item.size_bytes for item in storage.list("xz")} == {"xz/3": 4}
    assert list(storage.list("empty")) == []
    storage.put("top", b"")
    assert [item.key for item in storage.list_folder()] == ["top"]


def test_the_version_changes_with_the_content(storage: Storage) -> None:
    def version() -> str:
        return next(item.version for item in storage.list("a"))

    storage.put("a/b", b"one")
    first = version()
    assert version() == first
    storage.put("a/b", b"two")
    assert version() != first


def test_a_download_copies_every_byte_and_returns_the_hash(storage: Storage, tmp_path: Path) -> None:
    for size_bytes in (0, 1, 25_000_000):
        data = random.Random(size_bytes).randbytes(size_bytes)
        storage.put("in/x.tar", data)
        with (tmp_path / "copy").open("w+b") as file:
            file.write(b"left by an earlier try" * 10)
            assert storage.download("in/x.tar", file) == sha256(data)
            file.seek(0)
            assert file.read() == data
    with (tmp_path / "copy").open("w+b") as file, pytest.raises(MissingError, match=r"none\.tar: no such object"):
        storage.download("in/none.tar", file)


def test_a_changed_record_is_detected(storage: Storage) -> None:
    record = {"text": "ε = 8/255", "number": 0.1, "nested": {"list": [1, None, True]}}
    assert storage.put_record("r.json", record)
    assert storage.get_record("r.json") == record
    assert storage.put_record("r.json", record), "the same record again"
    assert not storage.put_record("r.json", {"text": "other"})
    assert storage.get_record("r.json") == record
    assert storage.put_record("r.json", {"text": "other"}, if_absent=False)
    assert storage.get_record("r.json") == {"text": "other"}
    whole = storage.get("r.json")
    for damaged in (b"", whole[:-1], whole.replace(b"other", b"othes"), b"{}", b"[]", b"7", b"\xff", b"[" * 100_000):
        storage.put("r.json", damaged)
        with pytest.raises(IntegrityError, match=r"r\.json: not a record"):
            storage.get_record("r.json")
    with pytest.raises(MissingError):
        storage.get_record("none.json")


def test_stat_agrees_with_the_listing(storage: Storage) -> None:
    storage.put("a/b", b"bytes")
    (listed,) = storage.list("a")
    assert storage.stat("a/b") == listed
    with pytest.raises(MissingError):
        storage.stat("a/c")


def test_deleting_removes_objects_and_ignores_missing_ones(storage: Storage) -> None:
    for key in ("a/1", "a/2 +ü", "b"):
        storage.put(key, b"x")
    storage.delete(["a/1", "a/2 +ü", "none"])
    storage.delete(["a/1"])
    storage.delete([])
    assert [item.key for item in storage.list()] == ["b"]


def test_the_clock_agrees_with_the_times_of_objects(storage: Storage) -> None:
    before = storage.read_clock()
    storage.put("a", b"x")
    after = storage.read_clock()
    assert int(before) <= storage.stat("a").modified <= after + 1, "S3 has whole seconds"
    assert list(storage.list("probe")) == []


def test_listing_and_deletion_of_many_pages_are_complete(storage: Storage) -> None:
    keys = {f"many/{number % 7}/{number:05d}" for number in range(2_345)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: storage.put(key, b""), sorted(keys)))
    storage.put("many-others", b"")
    listed = [item.key for item in storage.list("many")]
    assert len(listed) == len(set(listed)) == len(keys)
    assert set(listed) == keys
    storage.delete(sorted(keys))
    assert [item.key for item in storage.list()] == ["many-others"]
