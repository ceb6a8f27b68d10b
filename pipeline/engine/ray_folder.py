"""The folder of a local Ray's files: Ray's own choice where its sockets fit into it, else a short one of this process.

A path of a Unix socket has at most 107 bytes (103 on macOS), and Ray's sockets lie in

    FOLDER/session_YEAR-MONTH-DAY_HOUR-MINUTE-SECOND_MICROSECONDS_PROCESS/sockets/plasma_store

so the TMPDIR that Slurm gives a job, or a user's own, is easily too long. Shards are still downloaded to TMPDIR.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import CapacityError

# The largest process id of Linux has seven digits.
_LONGEST_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # a private folder is made inside
# Logs and notes of a small run; the object store lies in shared memory.
_LEAST_FREE_BYTES = 32 * 2**20


def longest_socket_bytes(platform: str) -> int:
    """The longest path of a Unix socket, as Ray checks it."""
    return 103 if platform == "darwin" else 107


def defect(folder: str, *, platform: str = sys.platform) -> str | None:
    """Why Ray cannot keep its files in a folder, which it would create; None where it can."""
    if len(os.fsencode(os.path.join(folder, _LONGEST_SOCKET))) > longest_socket_bytes(platform):
        return "its path is too long for Ray's sockets"
    existing = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is a file"
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return str(error.strerror)
    return "its disk is full" if free < _LEAST_FREE_BYTES else None


def make_short_folder(candidates: Sequence[str] = _SHORT_FOLDERS, *, reason: str) -> Path:
    """Creates a folder that this user alone can enter, in the first of the candidates that Ray can use.

    Args:
        candidates: Folders with short paths.
        reason: Why Ray's own choice cannot be used, for the message.

    Raises:
        CapacityError: None of them can be used.
    """
    for parent in candidates:
        if defect(os.path.join(parent, "gnp-12345678", "ray")) is None:
            return Path(tempfile.mkdtemp(prefix="gnp-", dir=parent))
    raise CapacityError(f"Ray needs a folder for its files: {reason}; nor can any of {', '.join(candidates)} be used")
