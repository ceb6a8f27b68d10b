"""Verified downloads of objects whose hash is not known yet."""

import hashlib
import re
from typing import BinaryIO

import obstore
from obstore.store import LocalStore, S3Store

from pipeline.errors import IntegrityError, StorageError
from pipeline.storage.client_errors import is_permanent, translated_errors

_ATTEMPTS = 4
_MD5 = re.compile(r"[0-9a-f]{32}")


def download(store: LocalStore | S3Store, key: str, file: BinaryIO, *, url: str) -> str:
    """Replaces a file's content with an object's bytes, piece by piece; returns the sha256.

    One read is enough if its MD5 is the store's tag (S3's single-part uploads), or if the tag does not look like an
    MD5. Where the tag looks like another MD5, two reads have to agree.

    Args:
        store: The client.
        key: Key of the object.
        file: A seekable file.
        url: URL of the object, for messages.

    Raises:
        MissingError: There is no such object.
        IntegrityError: No two reads gave the same bytes.
        StorageError: The store failed.
    """
    digests: set[str] = set()
    for attempt in range(_ATTEMPTS):
        try:
            digest, trusted = _download_once(store, key, file, url=url)
        except StorageError as error:
            if attempt + 1 == _ATTEMPTS or (error.__cause__ is not None and is_permanent(error.__cause__)):
                raise
            continue
        if trusted or digest in digests:
            return digest
        digests.add(digest)
    raise IntegrityError(f"{url}: {_ATTEMPTS} reads gave different bytes; check the network or the store")


def _download_once(store: LocalStore | S3Store, key: str, file: BinaryIO, *, url: str) -> tuple[str, bool]:
    """One read: its sha256, and whether the store's tag allows to trust it."""
    file.seek(0)
    file.truncate()
    digest, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with translated_errors(url):
        result = obstore.get(store, key)
        for piece in result.stream():
            digest.update(piece)
            md5.update(piece)
            file.write(piece)
    if file.tell() != result.meta["size"]:
        raise StorageError(f"{url}: {file.tell()} of {result.meta['size']} bytes came; try again")
    tag = str(result.meta["e_tag"]).strip('"')
    return digest.hexdigest(), not _MD5.fullmatch(tag) or tag == md5.hexdigest()
