"""Objects of a store, verified, and kept on a local disk so that each crosses the network once."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from webdataset.cache import LRUCleanup

from pipeline.errors import StorageError
from pipeline.storage import Storage, sha256


@dataclass(frozen=True)
class Cache:
    """A folder of objects by their hashes, which processes of one machine share.

    What is in it is checked whenever it is read, and fetched again where it is damaged. Above its limit what was used
    longest ago goes first; while several processes write, it may be exceeded by an object of each.

    Attributes:
        folder: Where; a folder `objects` is made in it, and nothing else there is touched.
        limit_bytes: How much it may hold.
    """

    folder: Path
    limit_bytes: int = 100 * 10**9

    def read(self, storage: Storage, key: str, sha256_hex: str) -> bytes:
        """An object's bytes, from here or from its store.

        Raises:
            MissingError: It is in neither.
            IntegrityError: The store's bytes are not those that were committed.
            StorageError: The store failed, or the folder cannot be written.
        """
        file = self.folder / "objects" / sha256_hex
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            data = b""
        if data and sha256(data) == sha256_hex:
            os.utime(file)
            return data
        data = storage.get(key, sha256_hex=sha256_hex)
        try:
            self._keep(file, data)
        except OSError as error:
            raise StorageError(f"cache {file}: {error.strerror}; make room, or choose another folder") from error
        return data

    def _keep(self, file: Path, data: bytes) -> None:
        if len(data) > self.limit_bytes:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        room = self.limit_bytes - len(data)
        LRUCleanup(str(file.parent), room, keyfn=os.path.getmtime, interval=None).cleanup()
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".", delete=False) as whole:
            whole.write(data)
        Path(whole.name).replace(file)
