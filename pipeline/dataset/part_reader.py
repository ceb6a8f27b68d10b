"""Reading the parts of a snapshot in the order of an epoch, from their stores or a cache, one window ahead."""

import io
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.data.shards import Shard
from pipeline.dataset.mix import WeightedParts
from pipeline.dataset.order import Window
from pipeline.dataset.snapshot import PartSelection
from pipeline.errors import IntegrityError
from pipeline.ledger import Marker
from pipeline.storage import Storage
from pipeline.storage.cache import Cache


@dataclass(frozen=True)
class StoredImage:
    """One image of an epoch, still encoded.

    Attributes:
        part: Its part.
        index: Its position in the part.
        tar: The part's tar.
        original: The tar of the part's originals; None unless pairs are read.
    """

    part: PartSelection
    index: int
    tar: Shard
    original: Shard | None


class PartReader:
    """Reads verified tars of parts; it holds open stores, so each worker process creates its own.

    Args:
        groups: All parts of the snapshot; windows refer to them by index.
        with_originals: Also read the originals of adversarial parts.
        cache: Local folder of objects; None reads every object from its store.
    """

    def __init__(self, groups: Sequence[WeightedParts], *, with_originals: bool, cache: Cache | None) -> None:
        self._groups = groups
        self._with_originals = with_originals
        self._cache = cache
        urls = sorted({part.store_url for group in groups for part in group.parts})
        self._stores = {url: Storage(url) for url in urls}

    def images(self, windows: Sequence[Window], *, skip: int) -> Iterator[StoredImage]:
        """The images of windows, in order; the next window is fetched while the images of this one are used.

        Args:
            windows: What is read.
            skip: Number of images at the beginning that are left out.

        Raises:
            IntegrityError: An object is damaged.
            StorageError: A store failed.
        """
        windows = list(windows)
        while windows and skip >= len(windows[0]):
            skip -= len(windows.pop(0))
        with ThreadPoolExecutor(1) as pool:
            fetched = pool.submit(self._fetch, windows[0]) if windows else None
            for number, window in enumerate(windows):
                assert fetched is not None
                tars = fetched.result()
                if number + 1 < len(windows):
                    fetched = pool.submit(self._fetch, windows[number + 1])
                positions = zip(window.groups.tolist(), window.parts.tolist(), window.indices.tolist(), strict=True)
                for group, part_number, index in itertools.islice(positions, skip if number == 0 else 0, None):
                    part = self._groups[group].parts[part_number]
                    yield StoredImage(part, int(part.indices[index]), *tars[group, part_number])

    def _fetch(self, window: Window) -> dict[tuple[int, int], tuple[Shard, Shard | None]]:
        """(Group, part) → the part's tar and that of its originals."""
        tars = {}
        for group, part_number in dict.fromkeys(zip(window.groups.tolist(), window.parts.tolist(), strict=True)):
            part = self._groups[group].parts[part_number]
            storage = self._stores[part.store_url]
            original = self._tar(storage, part.original) if self._with_originals and part.original else None
            tars[group, part_number] = self._tar(storage, part.marker), original
        return tars

    def _tar(self, storage: Storage, marker: Marker) -> Shard:
        where = storage.url_of(marker.object)
        if self._cache is None:
            data = storage.get(marker.object, sha256_hex=marker.sha256)
        else:
            data = self._cache.read(storage, marker.object, marker.sha256)
        shard = Shard(io.BytesIO(data), name=where)
        if len(shard) != marker.facts["n"]:
            raise IntegrityError(f"{where}: holds {len(shard)} images, its marker says {marker.facts['n']}; run verify")
        return shard
