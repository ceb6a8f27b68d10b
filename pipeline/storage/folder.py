"""A folder as a store: a put that has returned survives a power loss."""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import StorageError


def create_folder(folder: Path) -> None:
    """Creates a folder and its parents where they do not exist.

    Raises:
        StorageError: It cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise StorageError(f"{folder}: cannot be a store: {reason}") from error


def put_durably(root: Path, key: str, data: bytes, *, replace: bool) -> None:
    """Writes `root/key` atomically, and fsyncs the file and every folder that the write changed.

    Raises:
        FileExistsError: `replace` is false and the file exists.
    """
    path = root / key
    new_folders = [folder for folder in path.parents if folder.is_relative_to(root) and not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = root / ".scratch"
    scratch.mkdir(exist_ok=True)
    temporary = scratch / uuid.uuid4().hex
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)
        for folder in {path.parent, *(folder.parent for folder in new_folders)}:
            _sync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Holds a lock on a folder that excludes all other processes on this machine."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
