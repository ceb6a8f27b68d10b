"""`Storage`: objects and records below one root, on S3 or in a folder."""

import contextlib
import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, S3Store

from pipeline.errors import IntegrityError, MissingError, StorageError
from pipeline.storage import folder, s3
from pipeline.storage.client_errors import retry_transient, short_message, translated_errors
from pipeline.storage.download import download
from pipeline.storage.listing import StoredObject, list_objects, to_stored_object
from pipeline.storage.records import decode_record, encode_record, sha256
from pipeline.storage.urls import S3Root, parse_root

# An object is read this often before bytes that do not match count as damaged.
_READ_ATTEMPTS = 4
# S3 deletes at most this many objects per request.
_DELETE_BATCH = 1000


def have_one_order(folders: Iterable[str]) -> bool:
    """Whether all stores list these folders in the order of their names: some compare names, some whole keys."""
    names = list(folders)
    return sorted(names) == sorted(names, key=lambda name: f"{name}/")


class Storage:
    """Objects below one root: `s3://bucket/prefix`, `file:///folder` or a plain folder.

    Args:
        url: The root.
        create: Make a folder that does not exist yet (a bucket is never made, but must answer).

    Raises:
        RecipeError: The URL has another form.
        MissingError: The folder does not exist, and `create` is false.
        StorageError: No credentials can be found for an S3 URL; or `create` is true, and its server does not answer.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        root = parse_root(url)
        self._folder = root if isinstance(root, Path) else None
        self._s3_root = root if isinstance(root, S3Root) else None
        self._store: LocalStore | S3Store
        if isinstance(root, S3Root):
            self.url = url.rstrip("/")
            self._store = s3.open_store(root)
            if create:
                self.check_contact()
            return
        self.url = str(root)
        if create:
            folder.create_folder(root)
        elif not root.is_dir():
            raise MissingError(f"{self.url}: no such folder")
        self._store = LocalStore(self.url)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.url}: an open store holds credentials and is not pickled; send its URL instead")

    def url_of(self, key: str) -> str:
        """URL of an object."""
        return f"{self.url}/{key}"

    # Reading

    @retry_transient
    def get(self, key: str, *, sha256_hex: str | None = None) -> bytes:
        """An object's bytes.

        Args:
            key: Key below the root.
            sha256_hex: The expected sha256; no client notices a flipped byte by itself.

        Raises:
            MissingError: There is no such object.
            IntegrityError: Repeated reads gave bytes with another hash.
            StorageError: The store failed.
        """
        for _ in range(_READ_ATTEMPTS):
            with translated_errors(self.url_of(key)):
                data = bytes(obstore.get(self._store, key).bytes())
            if sha256_hex is None or sha256(data) == sha256_hex:
                return data
        raise IntegrityError(
            f"{self.url_of(key)}: damaged: its {len(data)} bytes hash to {sha256(data)[:12]}, "
            f"but {str(sha256_hex)[:12]} was committed; restore the object from a copy"
        )

    def download(self, key: str, file: BinaryIO) -> str:
        """Copies an object whose hash is not known into a local file, piece by piece; returns the sha256.

        Raises:
            MissingError: There is no such object.
            IntegrityError: No two reads gave the same bytes.
            StorageError: The store failed.
        """
        return download(self._store, key, file, url=self.url_of(key))

    def get_record(self, key: str) -> dict[str, Any]:
        """A small JSON object that `put_record` wrote, checked against the hash that it carries.

        Raises:
            MissingError: There is no such record.
            IntegrityError: It is not a record, or is damaged.
            StorageError: The store failed.
        """
        reason = ""
        for _ in range(_READ_ATTEMPTS):
            try:
                return decode_record(self.get(key))
            except ValueError as error:
                reason = str(error)
        raise IntegrityError(f"{self.url_of(key)}: not a record ({reason[:100]}); restore it from a copy")

    @retry_transient
    def stat(self, key: str) -> StoredObject:
        """An object's size, version and time, without its bytes.

        Raises:
            MissingError: There is no such object.
            StorageError: The store failed.
        """
        with translated_errors(self.url_of(key)):
            return to_stored_object(obstore.head(self._store, key))

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Every object below the folder `prefix`, in no promised order.

        Raises:
            StorageError: The store failed.
        """
        return list_objects(self._store, prefix, url=self.url_of(prefix))

    def list_neighbours(self, prefix: str, folders: Sequence[str]) -> Iterator[StoredObject]:
        """Every object below some sub-folders of the folder `prefix`, in as few requests as for one long folder.

        Args:
            prefix: The folder.
            folders: Names of sub-folders, sorted; they must have one order (`have_one_order`). Objects of others that
                lie between them are listed as well.

        Raises:
            StorageError: The store failed.
        """
        if self._folder is not None:
            return itertools.chain.from_iterable(self.list(f"{prefix}/{name}") for name in folders)
        start = f"{prefix}/{folders[0]}/!"  # before any letter or digit; the client drops a slash at the end
        stored = list_objects(self._store, prefix, url=self.url_of(prefix), after=start)
        end = f"{prefix}/{folders[-1]}" + chr(ord("/") + 1)
        return itertools.takewhile(lambda each: each.key < end, stored)

    @retry_transient
    def list_folder(self) -> tuple[StoredObject, ...]:
        """The objects directly below the root, without those in sub-folders: a command's first look at its input.

        Raises:
            StorageError: The store failed, or does not answer.
        """
        self.check_contact()
        with translated_errors(self.url_of("")):
            objects = obstore.list_with_delimiter(self._store)["objects"]
        return tuple(to_stored_object(meta) for meta in objects)

    # Writing

    @retry_transient
    def put(self, key: str, data: bytes) -> None:
        """Writes an object whole, replacing one of the same key; durable when it returns.

        Raises:
            StorageError: The store failed; readers then see no part of the object.
        """
        with translated_errors(self.url_of(key)):
            if self._folder is not None:
                folder.put_durably(self._folder, key, data, replace=True)
            else:
                obstore.put(self._store, key, data, use_multipart=False)

    @retry_transient
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes an object unless one of its key exists; returns whether the stored object has these bytes.

        The store's answer can be lost after it has written; the retry is then refused because the object exists. So
        unless the write plainly succeeds, the stored object is read back and compared.

        Raises:
            StorageError: The store failed, and no object of that key can be read.
        """
        try:
            if self._folder is not None:
                folder.put_durably(self._folder, key, data, replace=False)
            else:
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
        except (FileExistsError, AlreadyExistsError, BaseError, OSError) as error:
            with contextlib.suppress(MissingError):
                return self._is_stored(key, data)
            raise StorageError(f"{self.url_of(key)}: {short_message(error)}") from error
        return True

    @retry_transient
    def put_if_unchanged(self, key: str, data: bytes, *, version: str) -> bool:
        """Replaces an object that still has the version which `stat` returned.

        Args:
            key: Key below the root.
            data: The new bytes.
            version: The expected version; "" where no object is expected.

        Returns:
            Whether the stored object has these bytes.

        Raises:
            StorageError: The store failed, and the stored object cannot be read.
        """
        if not version:
            return self.put_if_absent(key, data)
        if self._folder is not None:
            with folder.locked(self._folder):
                if self.stat(key).version == version:
                    self.put(key, data)
                return self._is_stored(key, data)
        try:
            obstore.put(self._store, key, data, mode={"e_tag": version}, use_multipart=False)
        except PreconditionError:  # may be this program's own write whose answer was lost, as in `put_if_absent`
            return self._is_stored(key, data)
        except (BaseError, OSError) as error:
            if self._is_stored(key, data):
                return True
            raise StorageError(f"{self.url_of(key)}: {short_message(error)}") from error
        return True

    def _is_stored(self, key: str, data: bytes) -> bool:
        """Whether the stored object has these bytes; read twice where they differ, since a byte can flip on the way."""
        return any(self.get(key) == data for _ in range(2))

    def put_record(self, key: str, record: Mapping[str, Any], *, if_absent: bool = True) -> bool:
        """Writes a small JSON object that carries its own hash.

        Returns:
            False if `if_absent` and another record is stored under this key.

        Raises:
            StorageError: The store failed.
        """
        data = encode_record(record)
        if if_absent:
            return self.put_if_absent(key, data)
        self.put(key, data)
        return True

    @retry_transient
    def delete(self, keys: Sequence[str]) -> None:
        """Removes objects; missing ones are ignored.

        Raises:
            StorageError: The store failed.
        """
        if self._folder is not None:
            for key in keys:
                with translated_errors(self.url_of(key)):
                    (self._folder / key).unlink(missing_ok=True)
            return
        for start in range(0, len(keys), _DELETE_BATCH):
            with translated_errors(self.url_of(keys[start])):
                obstore.delete(self._store, keys[start : start + _DELETE_BATCH])

    def list_stale_uploads(self, *, age_s: float) -> Sequence[str]:
        """Multipart uploads below the root that began at least `age_s` ago and never finished, as `KEY ID`.

        This package never makes any; other tools that fill the same prefix do, and the store charges for them.

        Raises:
            StorageError: The store failed.
        """
        if self._s3_root is None:
            return []
        return s3.list_uploads(self._s3_root, now=self.read_clock(), age_s=age_s)

    def abort_upload(self, upload: str) -> None:
        """Ends one of `list_stale_uploads`.

        Raises:
            StorageError: The store failed.
        """
        assert self._s3_root is not None, "a folder has no uploads"
        s3.abort_upload(self._s3_root, upload)

    # Checking

    def check_contact(self) -> None:
        """Checks within seconds that the store's server answers, before a command begins; later outages are waited out.

        Raises:
            StorageError: It does not; the message is the cause.
        """
        if self._s3_root is not None:
            s3.check_contact(self._s3_root, url=self.url)

    def read_clock(self) -> float:
        """The store's time in seconds since 1970, read off a small object that is written for it and removed.

        Raises:
            StorageError: The store failed.
        """
        key = f"probe/{uuid.uuid4().hex}"
        self.put(key, b"what time is it?")
        modified = self.stat(key).modified
        self.delete([key])
        return modified

    def check_put_if_absent(self) -> None:
        """Checks that the store can be written and honours put-if-absent, on which every commit rests.

        Raises:
            MissingError: The bucket does not exist.
            StorageError: The store cannot be written, or overwrites in spite of put-if-absent.
        """
        key = f"probe/{uuid.uuid4().hex}"
        first = self.put_if_absent(key, b"first")
        second = self.put_if_absent(key, b"second")
        with translated_errors(self.url_of(key)):
            obstore.delete(self._store, key)
        if not first or second:
            raise StorageError(
                f"{self.url}: this store ignores If-None-Match (put-if-absent), so two runs could overwrite each "
                "other's results; use a store that honours it (Amazon S3, MinIO, Ceph, SeaweedFS, R2, a folder)"
            )
