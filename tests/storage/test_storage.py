import os
import random
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import IntegrityError, MissingError, RecipeError, StorageError
from pipeline.storage import Storage, absolute, sha256, split
from tests.chaos.proxy import Fault, FaultKind, Proxy


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


def winners(write: Callable[[bytes], bool]) -> list[bytes]:
    """What was written by those of eight that are told that they have won."""
    won, ready = list[bytes](), threading.Barrier(8)

    def race(number: int) -> None:
        ready.wait()
        if write(str(number).encode()):
            won.append(str(number).encode())

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_of_racing_writers_exactly_one_wins(storage: Storage) -> None:
    assert winners(lambda data: storage.put_once("race", data)) == [storage.get("race")]


def test_an_object_is_replaced_only_by_who_knows_what_stands(storage: Storage) -> None:
    assert storage.replace("latest", b"1", version="")
    assert not storage.replace("latest", b"2", version="")
    first = storage.stat("latest").version
    assert storage.replace("latest", b"2", version=first)
    assert not storage.replace("latest", b"3", version=first)
    assert storage.replace("latest", b"2", version=first), "a repeated write of the same bytes stands"
    assert storage.get("latest") == b"2"


def test_of_racing_replacers_exactly_one_wins(storage: Storage) -> None:
    storage.put("race", b"before")
    before = storage.stat("race").version
    assert winners(lambda data: storage.replace("race", data, version=before)) == [storage.get("race")]


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


def test_a_download_copies_every_byte_and_says_their_hash(storage: Storage, tmp_path: Path) -> None:
    for size_bytes in (0, 1, 25_000_000):
        data = random.Random(size_bytes).randbytes(size_bytes)
        storage.put("in/x.tar", data)
        with (tmp_path / "copy").open("w+b") as file:
            file.write(b"what a try before has left" * 10)
            assert storage.download("in/x.tar", file) == sha256(data)
            file.seek(0)
            assert file.read() == data
    with (tmp_path / "copy").open("w+b") as file, pytest.raises(MissingError, match=r"none\.tar: no such object"):
        storage.download("in/none.tar", file)


def test_a_record_is_read_back_and_any_change_of_it_is_noticed(storage: Storage) -> None:
    record = {"text": "ε = 8/255", "number": 0.1, "nested": {"list": [1, None, True]}}
    assert storage.put_record("r.json", record)
    assert storage.record("r.json") == record
    assert storage.put_record("r.json", record), "the same once more stands"
    assert not storage.put_record("r.json", {"text": "other"})
    assert storage.record("r.json") == record
    assert storage.put_record("r.json", {"text": "other"}, once=False)
    assert storage.record("r.json") == {"text": "other"}
    whole = storage.get("r.json")
    for damaged in (b"", whole[:-1], whole.replace(b"other", b"othes"), b"{}", b"[]", b"7", b"\xff", b"[" * 100_000):
        storage.put("r.json", damaged)
        with pytest.raises(IntegrityError, match=r"r\.json: not a record"):
            storage.record("r.json")
    with pytest.raises(MissingError):
        storage.record("none.json")


def test_a_stat_is_what_a_listing_says(storage: Storage) -> None:
    storage.put("a/b", b"bytes")
    (listed,) = storage.list("a")
    assert storage.stat("a/b") == listed
    with pytest.raises(MissingError):
        storage.stat("a/c")


def test_what_is_deleted_is_gone_and_what_was_gone_is_no_error(storage: Storage) -> None:
    for key in ("a/1", "a/2 +ü", "b"):
        storage.put(key, b"x")
    storage.delete(["a/1", "a/2 +ü", "none"])
    storage.delete(["a/1"])
    storage.delete([])
    assert [item.key for item in storage.list()] == ["b"]


def test_the_stores_clock_goes_by_what_it_writes_on_objects(storage: Storage) -> None:
    before = storage.clock()
    storage.put("a", b"x")
    after = storage.clock()
    assert int(before) <= storage.stat("a").modified <= after + 1, "S3 tells whole seconds"
    assert list(storage.list("probe")) == []


def test_a_listing_of_many_pages_is_whole_and_deletes_run_in_pages(storage: Storage) -> None:
    keys = {f"many/{number % 7}/{number:05d}" for number in range(2_345)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: storage.put(key, b""), sorted(keys)))
    storage.put("many-others", b"")
    listed = [item.key for item in storage.list("many")]
    assert len(listed) == len(set(listed)) == len(keys)
    assert set(listed) == keys
    storage.delete(sorted(keys))
    assert [item.key for item in storage.list()] == ["many-others"]


def test_a_small_folder_is_listed_in_one_request(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    storage = Storage(f"s3://demo/{uuid.uuid4().hex}")
    for number in range(6):
        storage.put(f"a/{number}", b"")
    real, asked = obstore.list, []

    def counted(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(obstore, "list", counted)
    assert len(list(storage.list("a"))) == 6
    assert len(asked) == 1
    monkeypatch.setattr("pipeline.storage.store._PAGE", 3)  # the server fills pages of any size likewise
    assert len(list(storage.list("a"))) == 6
    assert len(asked) == 1 + 3, "two full pages, and the end"


@pytest.mark.parametrize("kind", ["reset", "refuse"])
def test_cut_connections_are_survived(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, kind: FaultKind) -> None:
    with Proxy(s3["AWS_ENDPOINT_URL"], seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage = Storage(f"s3://demo/{uuid.uuid4().hex}")
        proxy.inject(Fault(kind, 0.3))
        for number in range(30):
            assert storage.put_once(f"once/{number:02d}", b"mine" * 1000)
            assert not storage.put_once(f"once/{number:02d}", b"yours")
            storage.put(f"put/{number:02d}", b"x" * 1000)
        for _ in range(5):
            assert [item.key for item in storage.list("once")] == [f"once/{number:02d}" for number in range(30)]
        for number in range(30):
            assert storage.get(f"once/{number:02d}") == b"mine" * 1000
            assert storage.stat(f"put/{number:02d}").size_bytes == 1000
        with tempfile.TemporaryFile() as file:
            assert storage.download("once/00", file) == sha256(b"mine" * 1000)
        storage.delete([f"put/{number:02d}" for number in range(30)])
        assert list(storage.list("put")) == []
        assert proxy.counts[kind] > 20


def test_a_flip_on_the_way_is_read_again(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(s3["AWS_ENDPOINT_URL"], seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage = Storage(f"s3://demo/{uuid.uuid4().hex}")
        data = random.Random(0).randbytes(10_000)
        storage.put("shards/x", data)
        storage.put_record("plans/x.json", {"a": 1})
        for _ in range(10):
            proxy.inject(Fault("flip", 1.0, limit=2))
            assert storage.get("shards/x", sha256_hex=sha256(data)) == data
            proxy.inject(Fault("flip", 1.0, limit=2))
            with tempfile.TemporaryFile() as file:
                assert storage.download("shards/x", file) == sha256(data)
            proxy.inject(Fault("flip", 1.0, limit=2))
            assert storage.record("plans/x.json") == {"a": 1}
        proxy.inject(Fault("flip", 1.0))
        with pytest.raises(IntegrityError, match="damaged"):
            storage.get("shards/x", sha256_hex=sha256(data))
        with pytest.raises(IntegrityError, match="reads gave different bytes"), tempfile.TemporaryFile() as file:
            storage.download("shards/x", file)


def test_a_refusal_is_told_by_its_code_and_not_in_xml(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"demo/prefix/key: SignatureDoesNotMatch: The request signature") as refused:
        Storage("s3://demo/prefix").get("key")
    assert "<" not in str(refused.value)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "http://", "ftp://x", "http://a b"])
def test_an_endpoint_that_is_no_address_is_told_as_such(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match=r"the endpoint is no address.*AWS_ENDPOINT_URL") as refused:
        Storage("s3://demo/prefix")
    assert "credentials" not in str(refused.value)
