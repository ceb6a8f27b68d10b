import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import IntegrityError, MissingError, RecipeError, StorageError
from pipeline.storage import Storage, absolute, sha256, split


def test_what_is_put_is_got_back_verified(storage: Storage) -> None:
    storage.put("a/b/c.bin", b"bytes")
    assert storage.get("a/b/c.bin", sha256_hex=sha256(b"bytes")) == b"bytes"
    assert [(item.key, item.size_bytes) for item in storage.list("a")] == [("a/b/c.bin", 5)]
    storage.put("a/b/c.bin", b"other")
    with pytest.raises(IntegrityError, match=r"a/b/c\.bin: damaged"):
        storage.get("a/b/c.bin", sha256_hex=sha256(b"bytes"))


def test_a_missing_object_is_named(storage: Storage) -> None:
    with pytest.raises(MissingError, match="nothing/here: no such object"):
        storage.get("nothing/here")


def test_put_once_keeps_the_first_and_says_whose_stands(storage: Storage) -> None:
    assert storage.put_once("marker", b"mine")
    assert not storage.put_once("marker", b"yours")
    assert storage.put_once("marker", b"mine"), "a repeated write of the same bytes stands"
    assert storage.get("marker") == b"mine"


def test_of_racing_writers_exactly_one_wins(storage: Storage) -> None:
    won: list[int] = []
    ready = threading.Barrier(8)

    def race(number: int) -> None:
        ready.wait()
        if storage.put_once("race", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(number).encode() for number in won] == [storage.get("race")]


def test_listing_gives_every_object_below_a_folder(storage: Storage) -> None:
    for key in ("x/1", "x/y/2", "xz/3"):
        storage.put(key, key.encode())
    assert {item.key for item in storage.list("x")} == {"x/1", "x/y/2"}
    assert {item.key: item.size_bytes for item in storage.list("xz")} == {"xz/3": 4}
    assert list(storage.list("empty")) == []
    storage.put("top", b"")
    assert [item.key for item in storage.list_folder()] == ["top"]


def test_a_version_follows_the_content(storage: Storage) -> None:
    def version() -> str:
        return next(item.version for item in storage.list("a"))

    storage.put("a/b", b"one")
    first = version()
    assert version() == first
    storage.put("a/b", b"two")
    assert version() != first


def test_a_probe_leaves_nothing_behind(storage: Storage) -> None:
    storage.probe()
    assert list(storage.list("probe")) == []


def test_a_store_that_overwrites_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path), create=True)

    def overwrite(key: str, data: bytes) -> bool:
        storage.put(key, data)
        return True

    monkeypatch.setattr(storage, "put_once", overwrite)
    with pytest.raises(StorageError, match="ignores If-None-Match"):
        storage.probe()


def test_a_put_that_fails_leaves_no_part_of_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path), create=True)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        storage.put("a/b", b"x" * 1000)
    monkeypatch.undo()
    assert list(storage.list()) == []


def test_file_and_folder_are_synced_before_a_put_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path), create=True)
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    storage.put_once("new/folder/marker", b"x")
    assert synced[0].startswith(str(tmp_path / ".scratch"))
    assert {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new/folder")} <= set(synced[1:])


def test_urls_are_understood_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    assert Storage(f"file://{tmp_path}/a%20b").url == str(tmp_path / "a b")
    with pytest.raises(MissingError, match="no such folder"):
        Storage(str(tmp_path / "typo"))
    for wrong in ("", "gs://bucket/x", "s3://", "s3:///prefix", "s3://b//x", "s3://b/x//y", "file://relative/x"):
        with pytest.raises(RecipeError, match="store"):
            Storage(wrong)
    assert split("s3://bucket/a/b.tar") == ("s3://bucket/a", "b.tar")
    assert split("b.tar") == (".", "b.tar")
    assert split("/b.tar") == ("/", "b.tar")
    assert absolute("s3://bucket/a") == "s3://bucket/a"
    assert absolute("x") == str(Path.cwd() / "x")
    (tmp_path / "link.tar").symlink_to(tmp_path / "blob")
    assert absolute(str(tmp_path / "link.tar")) == str(tmp_path / "link.tar"), "the hub's cache is links to blobs"


def test_odd_characters_in_a_url_are_part_of_its_path(tmp_path: Path, s3: dict[str, str]) -> None:
    for url in (f"file://{tmp_path}/a#b?c", "s3://demo/a#b?c+d e"):
        Storage(url, create=True).put("k#1?x=+ é", b"mine")
        assert Storage(url).get("k#1?x=+ é") == b"mine"
        assert [item.key for item in Storage(url).list()] == ["k#1?x=+ é"]
    assert (tmp_path / "a#b?c" / "k#1?x=+ é").read_bytes() == b"mine"


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be a store: it is a file"):
        Storage(str(tmp_path / "file"), create=True)
    with pytest.raises(MissingError):
        Storage(str(tmp_path / "file"))


def test_a_missing_bucket_and_wrong_credentials_read_as_one_line(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingError, match="no-such-bucket"):
        Storage("s3://no-such-bucket/prefix").get("key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError) as refused:
        Storage("s3://demo/prefix").get("key")
    assert "\n" not in str(refused.value)


def test_without_credentials_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        Storage("s3://bucket/prefix")


def test_a_lost_answer_is_settled_by_reading_back(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage("s3://demo/lost-answer")
    import obstore

    real = obstore.put

    def written_then_lost(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise obstore.exceptions.GenericError("connection reset")

    monkeypatch.setattr(obstore, "put", written_then_lost)
    assert storage.put_once("marker", b"mine")
    assert not storage.put_once("marker", b"yours")
