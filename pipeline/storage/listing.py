"""Listing the objects of a store, page by page."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import obstore
from obstore.store import LocalStore, S3Store

if TYPE_CHECKING:
    from obstore import ObjectMeta

from pipeline.storage.client_errors import retry_transient, translated_errors

# S3 lists this many objects per request.
_PAGE_SIZE = 1000


@dataclass(frozen=True)
class StoredObject:
    """One listed object.

    Attributes:
        key: Key below the store's root.
        size_bytes: Size of the object.
        version: The store's tag of the content (of the file, where the store is a folder); changes with it.
        modified: Time of the last write, in seconds since 1970 by the store's clock.
    """

    key: str
    size_bytes: int
    version: str
    modified: float


def to_stored_object(meta: "ObjectMeta") -> StoredObject:
    """The client's description of an object as this package's."""
    modified = meta["last_modified"]
    return StoredObject(meta["path"], int(meta["size"]), str(meta["e_tag"] or modified), modified.timestamp())


def list_objects(store: LocalStore | S3Store, prefix: str, *, url: str, after: str = "") -> Iterator[StoredObject]:
    """Every object below the folder `prefix`, in no promised order.

    Args:
        store: The client.
        prefix: Folder below the store's root; "" for all.
        url: URL of the folder, for messages.
        after: Only objects whose keys come after this one; on S3 alone.

    Raises:
        StorageError: The store failed.
    """
    if isinstance(store, LocalStore):
        with translated_errors(url):
            for chunk in obstore.list(store, prefix or None, chunk_size=_PAGE_SIZE):
                yield from map(to_stored_object, chunk)
        return
    # S3 lists in the order of keys, so a page that breaks off is requested again.
    while page := _list_page(store, prefix, after, url=url):
        yield from page
        if len(page) < _PAGE_SIZE:  # the client fills its pages, so a short one is the last
            return
        after = page[-1].key


@retry_transient
def _list_page(store: S3Store, prefix: str, after: str, *, url: str) -> tuple[StoredObject, ...]:
    """The next objects below a folder, in the order of keys; empty at the end."""
    with translated_errors(url):
        pages = obstore.list(store, prefix or None, offset=after or None, chunk_size=_PAGE_SIZE)
        return tuple(to_stored_object(meta) for meta in next(iter(pages), ()))
