"""The one interface: objects and small sealed records below a root."""

import contextlib
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn
from urllib.parse import unquote

import boto3
import botocore.exceptions
import obstore
import tenacity
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, S3Store

if TYPE_CHECKING:
    from obstore import ObjectMeta

from pipeline.errors import IntegrityError, MissingError, RecipeError, StorageError
from pipeline.storage import folder, s3
from pipeline.storage.s3 import first_line

log = logging.getLogger(__name__)

# How often an object is read before bytes that do not match are called damage.
_READS = 4
# What S3 lists at a time.
_PAGE = 1000
_MD5 = re.compile(r"[0-9a-f]{32}")


# What no patience mends.
_FINAL = (NotFoundError, PermissionDeniedError, UnauthenticatedError, NotSupportedError, InvalidPathError)


def _may_pass(error: BaseException) -> bool:
    """Whether a failure is of the kind that goes away: the client gives up on a cut connection at once."""
    return (
        isinstance(error, StorageError)
        and isinstance(error.__cause__, BaseError)
        and not isinstance(error.__cause__, _FINAL)
    )


_patiently = tenacity.retry(
    retry=tenacity.retry_if_exception(_may_pass),
    wait=tenacity.wait_random_exponential(multiplier=0.1, max=10),
    stop=tenacity.stop_after_delay(60),
    before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
    reraise=True,
)


@dataclass(frozen=True)
class Stored:
    """One listed object.

    Attributes:
        key: Its key below the store's root.
        size_bytes: Its size.
        version: The store's own tag of its content, or of the file where the store is a folder; changes with it.
        modified: When it was written, in seconds since 1970 by the store's own clock.
    """

    key: str
    size_bytes: int
    version: str
    modified: float


def sha256(data: bytes) -> str:
    """The hex digest that markers and object names carry."""
    return hashlib.sha256(data).hexdigest()


class Storage:
    """Objects below one root: `s3://bucket/prefix`, `file:///folder` or a plain folder.

    Args:
        url: The root.
        create: Make a folder that does not exist yet (a bucket is never made).

    Raises:
        RecipeError: The URL names no store that this interface knows.
        MissingError: The folder does not exist and was not to be made.
        StorageError: No credentials can be found for an S3 URL.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        scheme, _, rest = url.rpartition("://")
        self._folder: Path | None = None
        self._store: LocalStore | S3Store
        if scheme == "s3":
            bucket, _, prefix = rest.rstrip("/").partition("/")
            if not bucket or "//" in f"/{prefix}":
                raise RecipeError(f"store {url!r}: write s3://bucket/prefix, with a bucket and no empty step")
            self.url = url.rstrip("/")
            self._place = (bucket, prefix)
            self._store = s3.open_store(bucket, prefix)
        elif re.match(r"(s3|file):", url) and not scheme:
            raise RecipeError(
                f"store {url!r}: not a store; write s3://bucket/prefix or file:///folder, with both slashes"
            )
        elif scheme in ("", "file") and rest:
            if scheme and not rest.startswith("/"):
                raise RecipeError(f"store {url!r}: write file:///folder, with three slashes and a whole path")
            self._folder = Path(absolute(unquote(rest) if scheme else rest))
            self.url = str(self._folder)
            if create:
                folder.make(self._folder)
            elif not self._folder.is_dir():
                raise MissingError(f"{self.url}: no such folder")
            self._store = LocalStore(self.url)
        else:
            raise RecipeError(f"store {url!r}: not a store; write s3://bucket/prefix, file:///folder or a folder")

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.url}: an open store holds credentials and is not pickled; send its URL instead")

    def at(self, key: str) -> str:
        """The address of an object, for messages and for other readers."""
        return f"{self.url}/{key}"

    @_patiently
    def get(self, key: str, *, sha256_hex: str | None = None) -> bytes:
        """The whole object.

        Args:
            key: Its key below the root.
            sha256_hex: What its bytes must hash to; no client notices a flipped byte by itself.

        Raises:
            MissingError: There is no such object.
            IntegrityError: The bytes hash to something else, however often they are read.
            StorageError: The store failed.
        """
        for _ in range(_READS):
            with self._explained(key):
                data = bytes(obstore.get(self._store, key).bytes())
            if sha256_hex is None or sha256(data) == sha256_hex:
                return data
        raise IntegrityError(
            f"{self.at(key)}: damaged: its {len(data)} bytes hash to {sha256(data)[:12]}, "
            f"but {str(sha256_hex)[:12]} was committed; restore the object from a copy"
        )

    def download(self, key: str, file: BinaryIO) -> str:
        """Copies an object into a local file, piece by piece; returns the sha256 of what the file then holds.

        Input has no committed hash yet. Where the store's tag is the content's MD5 (S3's single-part uploads) it
        settles whether a byte flipped on the way; where it only looks like one, two equal reads do.

        Raises:
            MissingError: There is no such object.
            IntegrityError: No two reads gave the same bytes.
            StorageError: The store failed.
        """
        seen: set[str] = set()
        for attempt in range(_READS):
            try:
                digest, tagged = self._download(key, file)
            except StorageError as error:
                if isinstance(error, MissingError) or attempt + 1 == _READS:
                    raise
                continue
            if tagged or digest in seen:
                return digest
            seen.add(digest)
        raise IntegrityError(f"{self.at(key)}: {_READS} reads gave different bytes; check the network or the store")

    def _download(self, key: str, file: BinaryIO) -> tuple[str, bool]:
        """One read: the sha256, and whether the store's own tag vouches for it."""
        file.seek(0)
        file.truncate()
        digest, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with self._explained(key):
            result = obstore.get(self._store, key)
            for piece in result.stream():
                digest.update(piece)
                md5.update(piece)
                file.write(piece)
        if file.tell() != result.meta["size"]:
            raise StorageError(f"{self.at(key)}: {file.tell()} of {result.meta['size']} bytes came; try again")
        tag = str(result.meta["e_tag"]).strip('"')
        return digest.hexdigest(), not _MD5.fullmatch(tag) or tag == md5.hexdigest()

    def record(self, key: str) -> dict[str, Any]:
        """A small JSON object that `put_record` wrote, checked against the hash that it carries.

        Raises:
            MissingError: There is no such record.
            IntegrityError: It is not one, or is damaged.
            StorageError: The store failed.
        """
        reason = ""
        for _ in range(_READS):
            raw = self.get(key)
            try:
                record = json.loads(raw)
                sealed = record.pop("seal")
                if sealed == seal(record):
                    return dict(record)
                reason = "its content is not what it was sealed as"
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise IntegrityError(f"{self.at(key)}: not a record ({reason[:100]}); restore it from a copy")

    def put_record(self, key: str, record: Mapping[str, Any], *, once: bool = True) -> bool:
        """Writes a small JSON object that carries its own hash; False if `once` and another one stands there.

        Raises:
            StorageError: The store failed.
        """
        data = json.dumps({**record, "seal": seal(record)}, indent=1, sort_keys=True, allow_nan=False).encode()
        if once:
            return self.put_once(key, data)
        self.put(key, data)
        return True

    @_patiently
    def put(self, key: str, data: bytes) -> None:
        """Writes an object whole, replacing one of the same key; durable when it returns.

        Raises:
            StorageError: The store failed; there is then no part of the object to be seen.
        """
        with self._explained(key):
            if self._folder is not None:
                folder.put_durably(self._folder, key, data, replace=True)
            else:
                obstore.put(self._store, key, data, use_multipart=False)

    @_patiently
    def put_once(self, key: str, data: bytes) -> bool:
        """Writes an object unless one of its key exists; True if these bytes are the ones that stand.

        An answer can be lost after the store has written, and the retry is then told that the object exists: so
        whenever the outcome is not a plain success, what stands is read back and compared.

        Raises:
            StorageError: The store failed, and nothing of that key can be read.
        """
        try:
            if self._folder is not None:
                folder.put_durably(self._folder, key, data, replace=False)
            else:
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
        except (FileExistsError, AlreadyExistsError, BaseError, OSError) as error:
            with contextlib.suppress(MissingError):
                return self._stands(key, data)
            raise StorageError(f"{self.at(key)}: {first_line(error)}") from error
        return True

    @_patiently
    def replace(self, key: str, data: bytes, *, version: str) -> bool:
        """Writes an object if what stands there has the version that `stat` said; "" is for: nothing stands there.

        Returns:
            Whether these bytes are what stands.

        Raises:
            StorageError: The store failed, and what stands cannot be read.
        """
        if not version:
            return self.put_once(key, data)
        if self._folder is not None:
            with folder.locked(self._folder):
                if self.stat(key).version == version:
                    self.put(key, data)
                return self._stands(key, data)
        try:
            obstore.put(self._store, key, data, mode={"e_tag": version}, use_multipart=False)
        except PreconditionError:  # it may be our own write whose answer was lost, as of `put_once`
            return self._stands(key, data)
        except (BaseError, OSError) as error:
            if self._stands(key, data):
                return True
            raise StorageError(f"{self.at(key)}: {first_line(error)}") from error
        return True

    def _stands(self, key: str, data: bytes) -> bool:
        """Whether these bytes are what stands; read again where they differ, lest a flip on the way decide."""
        return any(self.get(key) == data for _ in range(2))

    @_patiently
    def delete(self, keys: Sequence[str]) -> None:
        """Removes objects; those that are gone already are no error.

        Raises:
            StorageError: The store failed.
        """
        if self._folder is not None:
            for key in keys:
                with self._explained(key):
                    (self._folder / key).unlink(missing_ok=True)
            return
        for start in range(0, len(keys), 1000):
            with self._explained(keys[start]):
                obstore.delete(self._store, keys[start : start + 1000])

    def clock(self) -> float:
        """What the store's own clock says, in seconds since 1970: written and read off one small object.

        Raises:
            StorageError: The store failed.
        """
        key = f"probe/{uuid.uuid4().hex}"
        self.put(key, b"what time is it?")
        modified = self.stat(key).modified
        self.delete([key])
        return modified

    def stale_uploads(self, *, age_s: float) -> list[str]:
        """Multipart uploads below the root that somebody began at least `age_s` ago and never finished, as `KEY ID`.

        This package never makes any; other tools that fill the same prefix do, and the store charges for them.

        Raises:
            StorageError: The store failed.
        """
        if self._folder is not None:
            return []
        bucket, prefix = self._place
        below = f"{prefix}/" if prefix else ""  # or another store's, whose prefix begins with this one, would be found
        now = self.clock()
        with self._explained(""):
            pages = boto3.client("s3").get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=below)
            return [
                f"{upload['Key']} {upload['UploadId']}"
                for page in pages
                for upload in page.get("Uploads", ())
                if now - upload["Initiated"].timestamp() >= age_s
            ]

    def abort_upload(self, upload: str) -> None:
        """Ends one of `stale_uploads`.

        Raises:
            StorageError: The store failed.
        """
        key, _, identifier = upload.rpartition(" ")
        with self._explained(key):
            boto3.client("s3").abort_multipart_upload(Bucket=self._place[0], Key=key, UploadId=identifier)

    @_patiently
    def stat(self, key: str) -> Stored:
        """An object's size, version and time, without its bytes.

        Raises:
            MissingError: There is no such object.
            StorageError: The store failed.
        """
        with self._explained(key):
            return _stored(obstore.head(self._store, key))

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """Every object whose key lies below the folder `prefix`, in no promised order.

        Raises:
            StorageError: The store failed.
        """
        if self._folder is not None:
            with self._explained(prefix):
                for chunk in obstore.list(self._store, prefix or None, chunk_size=1000):
                    yield from map(_stored, chunk)
            return
        after: str | None = None  # S3 lists in the order of keys, so a page that breaks off is asked for again
        while page := self._page(prefix, after):
            yield from page
            if len(page) < _PAGE:  # the client fills its pages, so a short one is the last
                return
            after = page[-1].key

    @_patiently
    def _page(self, prefix: str, after: str | None) -> tuple[Stored, ...]:
        """The next objects below a folder, in the order of keys; none at the end."""
        with self._explained(prefix):
            pages = obstore.list(self._store, prefix or None, offset=after, chunk_size=_PAGE)
            return tuple(_stored(meta) for meta in next(iter(pages), ()))

    @_patiently
    def list_folder(self) -> tuple[Stored, ...]:
        """The objects that lie directly below the root, without those in folders of theirs.

        Raises:
            StorageError: The store failed.
        """
        with self._explained(""):
            found = obstore.list_with_delimiter(self._store)["objects"]
        return tuple(_stored(meta) for meta in found)

    def probe(self) -> None:
        """Checks that the store can be written and honours put-if-absent, which everything rests on.

        Raises:
            MissingError: The bucket does not exist.
            StorageError: The store cannot be written, or overwrites what it was told to keep.
        """
        key = f"probe/{uuid.uuid4().hex}"
        first = self.put_once(key, b"first")
        second = self.put_once(key, b"second")
        with self._explained(key):
            obstore.delete(self._store, key)
        if not first or second:
            raise StorageError(
                f"{self.url}: this store ignores If-None-Match (put-if-absent), so two runs could overwrite each "
                "other's results; use a store that honours it (Amazon S3, MinIO, Ceph, SeaweedFS, R2, a folder)"
            )

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Turns the client's exceptions into this package's, naming the object."""
        try:
            yield
        except FileNotFoundError as error:
            missing = "no such bucket" if "NoSuchBucket" in str(error) else "no such object"
            raise MissingError(f"{self.at(key)}: {missing}") from error
        except (BaseError, OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self.at(key)}: {first_line(error)}") from error


def seal(record: Mapping[str, Any]) -> str:
    """The hash of a record's canonical JSON."""
    return sha256(json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def absolute(url: str) -> str:
    """A URL that means the same in every worker: plain paths are taken from the current folder.

    Links are kept: the model hub's cache names files by links to blobs that have no extension.
    """
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def split(url: str) -> tuple[str, str]:
    """An object's URL as (its folder's URL, its name)."""
    folder, slash, name = url.rpartition("/")
    return folder or slash or ".", name


def _stored(meta: "ObjectMeta") -> Stored:
    modified = meta["last_modified"]
    return Stored(meta["path"], int(meta["size"]), str(meta["e_tag"] or modified), modified.timestamp())
