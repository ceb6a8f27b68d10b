"""Which parts are committed, read off the names of markers alone: one request lists 1,000."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.ledger.keys import Unit, parse_part_file
from pipeline.storage import Storage


@dataclass(frozen=True)
class FinishedShards:
    """Shards that are finished in some scopes.

    Attributes:
        scopes: The scopes, such as `clean/DATASET/TARGET`.
        shards: Shard → number of its parts, all of which are committed in each scope.
    """

    scopes: Sequence[str]
    shards: Mapping[str, int]


@dataclass(frozen=True)
class Index:
    """What the index of a dataset says.

    Attributes:
        folder: Where records belong that are made from markers listed from now on.
        records: The records that count.
    """

    folder: str
    records: Sequence[FinishedShards]

    def finished(self, scope: str) -> dict[str, int]:
        """Shard → number of parts, of the shards that are finished in a scope."""
        return {
            shard: count for record in self.records if scope in record.scopes for shard, count in record.shards.items()
        }


@dataclass(frozen=True)
class CommittedParts:
    """The committed parts of some scopes, in some 100 bytes per shard and scope.

    Attributes:
        scopes: Scope → shard → (number of parts of the shard, committed parts as bits).
        index: The index of finished shards with which they were listed; None: all markers were listed.
    """

    scopes: Mapping[str, Mapping[str, tuple[int, int]]]
    index: Index | None = field(default=None, compare=False)

    def __contains__(self, unit: Unit) -> bool:
        return bool(self.part_bits(unit.scope, unit.part.shard) >> unit.part.index & 1)

    def part_count(self, shard: str) -> int | None:
        """The number of parts of a shard; None while none is committed."""
        return next((shards[shard][0] for shards in self.scopes.values() if shard in shards), None)

    def part_bits(self, scope: str, shard: str) -> int:
        """The committed parts of a shard in a scope: bit i for part i."""
        return self.scopes[scope].get(shard, (0, 0))[1]

    def is_finished(self, shard: str) -> bool:
        """Whether every part of a shard is committed in every scope."""
        count = self.part_count(shard)
        return count is not None and all(self.part_bits(scope, shard) == (1 << count) - 1 for scope in self.scopes)


def list_scope(storage: Storage, scope: str, *, shard: str = "") -> dict[str, tuple[int, int]]:
    """The committed parts of one scope, as in `CommittedParts.scopes`.

    Args:
        storage: The store.
        scope: Such as `clean/DATASET/TARGET`.
        shard: Only this shard; by default all.
    """
    folder = f"markers/{scope}/{shard}" if shard else f"markers/{scope}"
    return _parts_by_shard(scope, (stored.key for stored in storage.list(folder)))


def list_scope_without(
    storage: Storage, scope: str, shards: Sequence[str], known: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """The committed parts of some shards in one scope, some of which are known to be finished and are not listed.

    Args:
        storage: The store.
        scope: Such as `clean/DATASET/TARGET`.
        shards: The shards, sorted.
        known: Finished shard → number of its parts.
    """
    keys: Iterator[str] = (
        stored.key
        for is_known, neighbours in itertools.groupby(shards, known.__contains__)
        if not is_known
        for stored in storage.list_neighbours(f"markers/{scope}", list(neighbours))
    )
    listed = _parts_by_shard(scope, keys)
    return listed | {shard: (known[shard], (1 << known[shard]) - 1) for shard in shards if shard in known}


def _parts_by_shard(scope: str, keys: Iterable[str]) -> dict[str, tuple[int, int]]:
    shards: dict[str, tuple[int, int]] = {}
    start = len(f"markers/{scope}/")
    for key in keys:
        name, _, file = key[start:].rpartition("/")
        part = parse_part_file(file)
        if part is not None and "/" not in name:
            index, count = part
            _, bits = shards.get(name, (0, 0))
            shards[name] = count, bits | 1 << index
    return shards
