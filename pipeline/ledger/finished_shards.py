"""An index of finished shards, so that resuming a huge plan lists the markers of unfinished shards only.

A record says that some scopes hold every part of some shards. It counts while nothing has been revoked since the
markers that it tells of were listed: its key names the revocations that were known before.

    finished/DATASET/revocations/ID.json                    written before markers are removed
    finished/DATASET/records/REVOCATIONS/FINGERPRINT.json   a record; REVOCATIONS is the fingerprint of their ids

A run reads the index where it begins, and for its progress; before it says that nothing is left, it lists all markers.
So a marker that was lost or removed by hand is made again, and the folder may be deleted at any time.
"""

import logging
import uuid
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger.committed import CommittedParts, FinishedShards, Index, list_scope_without
from pipeline.ledger.keys import fingerprint
from pipeline.storage import Storage, have_one_order

log = logging.getLogger(__name__)

# A record is about so many markers or more: 20 requests to list them, one to read the record.
_BLOCK_MARKERS = 20_000
# No shard has so many parts; a record that says so is not believed.
_MOST_PARTS = 10**6
_READERS = 32


def read_index(storage: Storage, dataset: str) -> Index:
    """The index of a dataset. A damaged record is left out; `gnp verify` reports it."""

    def read(key: str) -> FinishedShards | None:
        try:
            return read_record(storage, key)
        except MissingError:  # it was removed a moment ago
            return None
        except IntegrityError as error:
            log.warning("%s", error)
            return None

    keys = [stored.key for stored in storage.list(f"finished/{dataset}")]
    revocations = sorted(key for key in keys if key.startswith(f"finished/{dataset}/revocations/"))
    folder = f"finished/{dataset}/records/{fingerprint({'revocations': revocations})}"
    with ThreadPoolExecutor(_READERS) as pool:
        records = pool.map(read, (key for key in keys if key.startswith(f"{folder}/")))
        return Index(folder, [record for record in records if record is not None])


def read_record(storage: Storage, key: str) -> FinishedShards:
    """One record.

    Raises:
        MissingError: There is none.
        IntegrityError: It is damaged, or lies under another record's key.
    """
    record = storage.get_record(key)
    try:
        finished = FinishedShards(scopes=tuple(record["scopes"]), shards=dict(record["shards"]))
        is_valid = (
            key == _record_key(key.rpartition("/")[0], finished)
            and all(type(scope) is str and scope.split("/")[1] == key.split("/")[1] for scope in finished.scopes)
            and all(type(count) is int and 0 < count <= _MOST_PARTS for count in finished.shards.values())
        )
    except (KeyError, TypeError, ValueError, IndexError, RecursionError):
        is_valid = False
    if not is_valid:
        raise IntegrityError(f"{storage.url_of(key)}: not a record of finished shards; remove it")
    return finished


def add_to_index(storage: Storage, committed: CommittedParts, shards: Iterable[str]) -> None:
    """Records what is finished in all scopes of `committed`, as far as that is worth a record.

    Args:
        storage: The store.
        committed: The committed parts, as `Ledger.list_committed` has found them with the index.
        shards: The shards that the scopes are meant to have.
    """
    shards = list(shards)
    if committed.index is None or not have_one_order(shards):
        return
    indexed = set.intersection(*(set(committed.index.finished(scope)) for scope in committed.scopes))
    for block in _finished_blocks(committed, shards, indexed):
        storage.put_record(_record_key(committed.index.folder, block), asdict(block), if_absent=False)


def _record_key(folder: str, record: FinishedShards) -> str:
    return f"{folder}/{fingerprint(asdict(record))}.json"


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


def void_index(storage: Storage, dataset: str) -> None:
    """Makes every record of a dataset void, also those that are being written: markers are about to be removed."""
    storage.put_record(f"finished/{dataset}/revocations/{uuid.uuid4().hex}.json", {})
    storage.delete([stored.key for stored in storage.list(f"finished/{dataset}/records")])


def is_true(storage: Storage, record: FinishedShards) -> bool:
    """Whether the markers of which a record tells are there: lists them."""
    shards = sorted(record.shards)
    committed = CommittedParts({scope: list_scope_without(storage, scope, shards, {}) for scope in record.scopes})
    return all(
        committed.part_count(shard) == count and committed.is_finished(shard) for shard, count in record.shards.items()
    )
