"""A plan's identities and shards without its models: which parts exist, which are missing, which items workers get.

This is all that a driver knows of a run. It loads neither torch nor a model (`tests/test_architecture.py`), so it stays
small for days, on a machine that may be small; the plan itself goes to the workers pickled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.data.sample import Part, ShardFile
from pipeline.ledger import CommittedParts, Unit

# The last shards, one per worker, are divided into so many items: workers then end within an eighth of a shard's time
# of each other. Each of these items fetches its shard.
_LAST_PIECES = 8


@dataclass(frozen=True)
class ShardSelection:
    """A shard, and how many of its first images belong to the run (None: all)."""

    shard: ShardFile
    images: int | None


@dataclass(frozen=True)
class Item:
    """A worker's unit of scheduling: every `stride`-th part of a shard from `offset`, from one source.

    Attributes:
        selection: The shard.
        source: Identity of the source.
        offset: Index of the first part.
        stride: Distance between parts; 1 where the item is the whole shard.
    """

    selection: ShardSelection
    source: str
    offset: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        """The item's name in messages."""
        parts = f" parts {self.offset}+{self.stride}n" if self.stride > 1 else ""
        return f"{self.selection.shard.name}{parts} from {self.source}"


@dataclass(frozen=True)
class Outline:
    """A plan's record and shards.

    Attributes:
        record: The plan as JSON values, as the store keeps it.
        selections: The shards that the run works on.
    """

    record: Mapping[str, Any]
    selections: tuple[ShardSelection, ...]

    @property
    def dataset(self) -> str:
        """Identity of the prepared images."""
        return str(self.record["dataset"])

    @property
    def sources(self) -> tuple[str, ...]:
        """Identities of the models attacked."""
        return tuple(self.record["sources"])

    @property
    def attacks(self) -> tuple[str, ...]:
        """Identities of the attacks."""
        return tuple(self.record["attacks"])

    @property
    def targets(self) -> tuple[str, ...]:
        """Identities of the models scored."""
        return tuple(self.record["targets"])


@dataclass(frozen=True)
class PickledPlan:
    """A plan as a driver holds it.

    Attributes:
        outline: The plan's identities and shards.
        pickled: The plan itself, without its shards, which no worker needs and which may be many.
        part_counts: Shard → number of parts, where it is known before the shard is read.
    """

    outline: Outline
    pickled: bytes
    part_counts: Mapping[str, int] = field(default_factory=dict)


def pending_items(
    outline: Outline,
    committed: CommittedParts,
    *,
    workers: int = 1,
    part_counts: Mapping[str, int] | None = None,
) -> list[Item]:
    """The items with missing results: whole shards, and parts of the last ones, so that workers end together.

    A shard whose number of parts is unknown may be damaged; it is divided only where workers outnumber the plan's
    shards.

    Args:
        outline: The plan.
        committed: The committed parts of `all_scopes(outline)`.
        workers: The number of generators.
        part_counts: Shard → number of parts, as far as it is known of shards without a committed part.
    """
    shards = [Item(selection, source) for source in outline.sources for selection in outline.selections]
    pending = incomplete_items(outline, shards, committed)
    shard_count = max(len({item.selection.shard.name for item in pending}), 1)

    def stride(position: int, shard: str) -> int:
        count = committed.part_count(shard) or (part_counts or {}).get(shard)
        if count is None:
            return -(-workers // max(len(outline.selections), 1))
        if workers == 1 or position < len(pending) - workers:
            return 1
        return min(count, max(_LAST_PIECES, -(-workers // shard_count)))

    items = [
        replace(item, offset=offset, stride=step)
        for position, item in enumerate(pending)
        for step in [stride(position, item.selection.shard.name)]
        for offset in range(step)
    ]
    return incomplete_items(outline, items, committed)


def incomplete_items(outline: Outline, items: Sequence[Item], committed: CommittedParts) -> list[Item]:
    """The items of which a unit is not committed."""
    scopes = {source: source_scopes(outline, source) for source in outline.sources}
    return [item for item in items if not _is_committed(item, scopes[item.source], committed)]


def is_complete(outline: Outline, item: Item, committed: CommittedParts) -> bool:
    """Whether every unit of an item is committed."""
    return _is_committed(item, source_scopes(outline, item.source), committed)


def _is_committed(item: Item, scopes: Sequence[str], committed: CommittedParts) -> bool:
    shard = item.selection.shard.name
    count = committed.part_count(shard)
    if count is None:
        return False
    parts = sum(1 << index for index in range(item.offset, count, item.stride))
    return all(committed.part_bits(scope, shard) & parts == parts for scope in scopes)


def source_scopes(outline: Outline, source: str) -> list[str]:
    """The folders of markers that a plan fills from one source."""
    return [unit.scope for unit in part_units(outline, source, Part("", 0, 1))]


def all_scopes(outline: Outline) -> list[str]:
    """The folders of markers that a plan fills, without duplicates."""
    return list(dict.fromkeys(scope for source in outline.sources for scope in source_scopes(outline, source)))


def item_parts(item: Item, committed: CommittedParts) -> list[Part] | None:
    """The parts of an item; None while no part of its shard is committed, so that their number is unknown."""
    shard = item.selection.shard.name
    count = committed.part_count(shard)
    return None if count is None else [Part(shard, index, count) for index in range(item.offset, count, item.stride)]


def part_units(outline: Outline, source: str, part: Part) -> list[Unit]:
    """All units of a part from one source: original, adversarial images, clean predictions, transfer results."""
    original = Unit(outline.dataset, part)
    adversarial = [replace(original, source=source, attack=attack) for attack in outline.attacks]
    return [
        original,
        *adversarial,
        *(replace(unit, target=target) for unit in (original, *adversarial) for target in outline.targets),
    ]
