"""Put-if-absent and put-if-unchanged, on folders and S3."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StorageError
from pipeline.storage import Storage


def test_put_if_absent_keeps_the_first_object(storage: Storage) -> None:
    assert storage.put_if_absent("marker", b"first")
    assert not storage.put_if_absent("marker", b"second")
    assert storage.put_if_absent("marker", b"first"), "the same bytes again"
    assert storage.get("marker") == b"first"


def race_writers(write: Callable[[bytes], bool]) -> list[bytes]:
    """Eight threads write at once; returns the data of those whose write returned true."""
    winners, ready = list[bytes](), threading.Barrier(8)

    def race(number: int) -> None:
        ready.wait()
        if write(str(number).encode()):
            winners.append(str(number).encode())

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


def test_exactly_one_of_racing_put_if_absent_wins(storage: Storage) -> None:
    assert race_writers(lambda data: storage.put_if_absent("race", data)) == [storage.get("race")]


def test_put_if_unchanged_needs_the_current_version(storage: Storage) -> None:
    assert storage.put_if_unchanged("latest", b"1", version="")
    assert not storage.put_if_unchanged("latest", b"2", version="")
    first = storage.stat("latest").version
    assert storage.put_if_unchanged("latest", b"2", version=first)
    assert not storage.put_if_unchanged("latest", b"3", version=first)
    assert storage.put_if_unchanged("latest", b"2", version=first), "the same bytes again"
    assert storage.get("latest") == b"2"


def test_exactly_one_of_racing_put_if_unchanged_wins(storage: Storage) -> None:
    storage.put("race", b"before")
    before = storage.stat("race").version
    assert race_writers(lambda data: storage.put_if_unchanged("race", data, version=before)) == [storage.get("race")]


def test_the_check_of_put_if_absent_leaves_no_object(storage: Storage) -> None:
    storage.check_put_if_absent()
    assert list(storage.list("probe")) == []


def test_a_store_that_ignores_put_if_absent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path), create=True)

    def overwrite(key: str, data: bytes) -> bool:
        storage.put(key, data)
        return True

    monkeypatch.setattr(storage, "put_if_absent", overwrite)
    with pytest.raises(StorageError, match="ignores If-None-Match"):
        storage.check_put_if_absent()


def test_after_a_lost_response_the_stored_object_is_read_back(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage("s3://demo/lost-answer")
    import obstore

    real = obstore.put

    def put_then_fail(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise obstore.exceptions.GenericError("connection reset")

    monkeypatch.setattr(obstore, "put", put_then_fail)
    assert storage.put_if_absent("marker", b"first")
    assert not storage.put_if_absent("marker", b"second")
