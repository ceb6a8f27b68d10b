"""Durability of folders."""

import os
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import Storage


def test_a_failed_put_leaves_no_partial_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    storage.put_if_absent("new/folder/marker", b"x")
    assert synced[0].startswith(str(tmp_path / ".scratch"))
    assert {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new/folder")} <= set(synced[1:])
