"""An index of finished shards, so that resuming a huge plan lists the markers of unfinished shards only.

A record says that some scopes hold every part of some shards:

    finished/DATASET/FINGERPRINT.json

A run writes it once it has seen all these markers, then lists them once more, and removes the record if one is gone.
Whoever revokes markers first removes the records of their shards. Without the index all is found as well, only slower:
it may be deleted at any time.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger.committed import CommittedParts, list_scope_without
from pipeline.ledger.keys import fingerprint
from pipeline.storage import Storage, have_one_order

log = logging.getLogger(__name__)

# A record is about so many markers or more: 20 requests to list them, one to read the record.
_BLOCK_MARKERS = 20_000
# No shard has so many parts; a record that says so is not believed.
_MOST_PARTS = 10**6
_READERS = 32


@dataclass(frozen=True)
class FinishedShards:
    """Shards that are finished in some scopes.

    Attributes:
        scopes: The scopes, such as `clean/DATASET/TARGET`.
        shards: Shard → number of its parts, all of which are committed in each scope.
    """

    scopes: Sequence[str]
    shards: Mapping[str, int]

    def key(self, dataset: str) -> str:
        """The record's key."""
        return f"finished/{dataset}/{fingerprint(asdict(self))}.json"


def finished_shards(storage: Storage, scopes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Scope → shard → number of parts, of the shards that the index has.

    Args:
        storage: The store.
        scopes: The scopes, all of one dataset.
    """
    known: dict[str, dict[str, int]] = {scope: {} for scope in scopes}
    for record in read_records(storage, _dataset(scopes)).values() if scopes else ():
        for scope in known.keys() & set(record.scopes):
            known[scope] |= record.shards
    return known


def index_finished_shards(storage: Storage, committed: CommittedParts, shards: Iterable[str]) -> None:
    """Adds to the index what is finished in all scopes of `committed`, as far as that is worth a record.

    Args:
        storage: The store.
        committed: The committed parts, as `Ledger.list_committed` has found them.
        shards: The shards that the scopes are meant to have.
    """
    shards, scopes = list(shards), tuple(committed.scopes)
    if not have_one_order(shards):
        return
    known = finished_shards(storage, scopes)
    indexed = set.intersection(*(set(known[scope]) for scope in scopes))
    for block in _finished_blocks(committed, shards, indexed):
        key = block.key(_dataset(scopes))
        storage.put_record(key, asdict(block))
        if not is_true(storage, block):  # markers were removed meanwhile
            storage.delete([key])


def is_true(storage: Storage, record: FinishedShards) -> bool:
    """Whether the markers of which a record tells are there: lists them."""
    shards = sorted(record.shards)
    committed = CommittedParts({scope: list_scope_without(storage, scope, shards, {}) for scope in record.scopes})
    return all(
        committed.part_count(shard) == count and committed.is_finished(shard) for shard, count in record.shards.items()
    )


def _finished_blocks(
    committed: CommittedParts, shards: Iterable[str], indexed: Collection[str]
) -> Iterator[FinishedShards]:
    """Blocks of finished shards that are worth a record: neighbours, so that the others are listed in few requests."""
    scopes, block, markers = tuple(committed.scopes), dict[str, int](), 0
    for shard in sorted(shards):
        count = committed.part_count(shard)
        if count is None or shard in indexed or not committed.is_finished(shard):
            block, markers = {}, 0
            continue
        block[shard] = count
        markers += count * len(scopes)
        if markers >= _BLOCK_MARKERS:
            yield FinishedShards(scopes, block)
            block, markers = {}, 0


def remove_records(storage: Storage, dataset: str, shards: Set[str]) -> None:
    """Removes the records of some shards, whose markers are about to be removed."""
    stale = [key for key, record in read_records(storage, dataset).items() if shards & record.shards.keys()]
    if stale:
        storage.delete(stale)


def read_records(storage: Storage, dataset: str) -> dict[str, FinishedShards]:
    """Every record of a dataset, by its key. One that is damaged is left out; `gnp verify` reports it."""

    def read(key: str) -> FinishedShards | None:
        try:
            return read_record(storage, key)
        except MissingError:  # it was removed a moment ago
            return None
        except IntegrityError as error:
            log.warning("%s", error)
            return None

    keys = [stored.key for stored in storage.list(f"finished/{dataset}")]
    with ThreadPoolExecutor(_READERS) as pool:
        return {key: record for key, record in zip(keys, pool.map(read, keys), strict=True) if record is not None}


def read_record(storage: Storage, key: str) -> FinishedShards:
    """One record.

    Raises:
        MissingError: There is none.
        IntegrityError: It is damaged, or lies under another record's key.
    """
    record = storage.get_record(key)
    try:
        finished = FinishedShards(scopes=tuple(record["scopes"]), shards=dict(record["shards"]))
        is_valid = finished.key(_dataset(finished.scopes)) == key and all(
            type(count) is int and 0 < count <= _MOST_PARTS for count in finished.shards.values()
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        is_valid = False
    if not is_valid:
        raise IntegrityError(f"{storage.url_of(key)}: not a record of finished shards; remove it")
    return finished


def _dataset(scopes: Sequence[str]) -> str:
    return scopes[0].split("/")[1]
