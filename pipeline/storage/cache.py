"""Objects of a store, verified, and kept on a local disk so that each crosses the network once.

WebDataset's own cache deletes whatever lies below its folder, and its processes delete what others are writing; this
one knows its files by their names, and where the disk is in the way it does without.
"""

import contextlib
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage import Storage, sha256

log = logging.getLogger(__name__)

_OBJECT = re.compile(r"[0-9a-f]{64}")
_BEGUN = re.compile(r"\.[0-9a-f]{64}\.[0-9]+")
# What was begun so long ago belongs to a process that is gone.
_STALE_S = 3600.0


@dataclass(frozen=True)
class Cache:
    """A folder of objects by their hashes, which processes of one machine share.

    What is in it is checked whenever it is read, and fetched again where it is damaged or gone. Above its limit what
    was used longest ago goes first; while several processes write, it may be exceeded by an object of each.

    Attributes:
        folder: Where; what lies there under other names than its own is left alone.
        limit_bytes: How much it may hold.
    """

    folder: Path
    limit_bytes: int = 100 * 10**9

    def read(self, storage: Storage, key: str, sha256_hex: str) -> bytes:
        """An object's bytes, from here or from its store.

        Raises:
            MissingError: It is in neither.
            IntegrityError: The store's bytes are not those that were committed.
            StorageError: The store failed.
        """
        file = self.folder / sha256_hex
        with contextlib.suppress(OSError):
            data = file.read_bytes()
            if sha256(data) == sha256_hex:
                with contextlib.suppress(OSError):  # another user's, or evicted this moment
                    os.utime(file)
                return data
        data = storage.get(key, sha256_hex=sha256_hex)
        try:
            self._keep(file, data)
        except OSError as error:
            log.warning("cache %s: %s; going on without it", file, error.strerror)
        return data

    def _keep(self, file: Path, data: bytes) -> None:
        if len(data) > self.limit_bytes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_room(len(data))
        begun = self.folder / f".{file.name}.{os.getpid()}"
        try:
            begun.write_bytes(data)
            begun.replace(file)
        finally:
            begun.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Deletes objects, those first that were used longest ago, until there is room."""
        found: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):  # another process has deleted it
                told = entry.stat(follow_symlinks=False)
                if _OBJECT.fullmatch(entry.name) and not entry.is_dir():
                    found.append((told.st_mtime, told.st_size, Path(entry.path)))
                elif _BEGUN.fullmatch(entry.name) and time.time() - told.st_mtime > _STALE_S:
                    os.unlink(entry.path)
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held + wanted <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            held -= size
