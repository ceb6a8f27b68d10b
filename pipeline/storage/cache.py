"""A local disk cache of a store's objects, by hash, so that each object crosses the network once.

WebDataset's cache deletes everything below its folder, and its processes delete files that others are writing. This one
recognizes its files by their names, and goes on without the disk where the disk fails.
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
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\.[0-9]+")
# The writer of an older partial file is gone.
_STALE_S = 3600.0


@dataclass(frozen=True)
class Cache:
    """A folder of objects by their hashes, shared by the processes of one machine.

    Every read is verified; a damaged or missing object is fetched again. Above the limit, the objects that were used
    longest ago are evicted first; several processes that write at once may exceed it by one object each.

    Attributes:
        folder: The folder; files with other names in it are left alone.
        limit_bytes: Limit on the total size.
    """

    folder: Path
    limit_bytes: int = 100 * 10**9

    def read(self, storage: Storage, key: str, sha256_hex: str) -> bytes:
        """An object's bytes, from the cache or from its store.

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
            self._write(file, data)
        except OSError as error:
            log.warning("cache %s: %s; going on without it", file, error.strerror)
        return data

    def _write(self, file: Path, data: bytes) -> None:
        if len(data) > self.limit_bytes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._evict(len(data))
        partial = self.folder / f".{file.name}.{os.getpid()}"
        try:
            partial.write_bytes(data)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def _evict(self, needed_bytes: int) -> None:
        """Deletes stale partial files, and the least recently used objects until there is room."""
        objects: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):  # another process has deleted it
                stat = entry.stat(follow_symlinks=False)
                if _OBJECT.fullmatch(entry.name) and not entry.is_dir():
                    objects.append((stat.st_mtime, stat.st_size, Path(entry.path)))
                elif _PARTIAL.fullmatch(entry.name) and time.time() - stat.st_mtime > _STALE_S:
                    os.unlink(entry.path)
        total_bytes = sum(size for _, size, _ in objects)
        for _, size, path in sorted(objects):
            if total_bytes + needed_bytes <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total_bytes -= size
