"""A plan by its names alone: which parts there are, which are missing, what is handed out.

This is all that a driver knows of a run. It loads neither torch nor a model (`tests/test_architecture.py`), so it stays
small for days, on a machine that may be small; what the names stand for travels past it, pickled, to the workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.data.sample import Part, ShardFile
from pipeline.ledger import Committed, Unit


@dataclass(frozen=True)
class Take:
    """A shard, and how many of its first images belong to the run (None: all)."""

    shard: ShardFile
    images: int | None


@dataclass(frozen=True)
class Item:
    """What an actor is handed: every `stride`-th part of a shard from `offset`, with one source.

    Attributes:
        take: The shard.
        source: Identity of the source.
        offset: The first part.
        stride: 1 where the item is the whole shard.
    """

    take: Take
    source: str
    offset: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        """What to call it in messages."""
        parts = f" parts {self.offset}+{self.stride}n" if self.stride > 1 else ""
        return f"{self.take.shard.name}{parts} from {self.source}"


@dataclass(frozen=True)
class Outline:
    """What a run is to make.

    Attributes:
        described: The plan as JSON values, as the store records it.
        takes: The shards.
    """

    described: Mapping[str, Any]
    takes: tuple[Take, ...]

    @property
    def dataset(self) -> str:
        """Identity of the prepared images."""
        return str(self.described["dataset"])

    @property
    def sources(self) -> tuple[str, ...]:
        """Identities of the models attacked."""
        return tuple(self.described["sources"])

    @property
    def attacks(self) -> tuple[str, ...]:
        """Identities of what is done from each of them."""
        return tuple(self.described["attacks"])

    @property
    def targets(self) -> tuple[str, ...]:
        """Identities of the models scored."""
        return tuple(self.described["targets"])


@dataclass(frozen=True)
class Prepared:
    """A plan as a driver holds it.

    Attributes:
        outline: Its names.
        sealed: The plan itself, pickled, without its shards, which no worker needs and which may be many.
    """

    outline: Outline
    sealed: bytes


def pending(outline: Outline, committed: Committed, *, workers: int = 1) -> list[Item]:
    """The items that something is missing from.

    Args:
        outline: What is to be made.
        committed: What has been; see `scopes`.
        workers: How many generators there are: fewer shards than these are split into strided items.
    """
    stride = -(-workers // max(len(outline.takes), 1))
    items = (
        Item(take, source, offset, stride)
        for source in outline.sources
        for take in outline.takes
        for offset in range(stride)
    )
    wanted = {source: scopes(outline, source) for source in outline.sources}
    return [item for item in items if not _complete(item, wanted[item.source], committed)]


def complete(outline: Outline, item: Item, committed: Committed) -> bool:
    """Whether every unit of an item stands."""
    return _complete(item, scopes(outline, item.source), committed)


def _complete(item: Item, wanted: Sequence[str], committed: Committed) -> bool:
    shard = item.take.shard.name
    count = committed.count(shard)
    if count is None:
        return False
    parts = sum(1 << index for index in range(item.offset, count, item.stride))
    return all(committed.bits(scope, shard) & parts == parts for scope in wanted)


def scopes(outline: Outline, source: str) -> list[str]:
    """The markers' folders that a plan fills from one source."""
    return [unit.scope for unit in units(outline, source, Part("", 0, 1))]


def all_scopes(outline: Outline) -> list[str]:
    """The markers' folders that a plan fills."""
    return list(dict.fromkeys(scope for source in outline.sources for scope in scopes(outline, source)))


def item_parts(item: Item, committed: Committed) -> list[Part] | None:
    """The parts of an item; None while no part of its shard is committed, so that their number is unknown."""
    shard = item.take.shard.name
    count = committed.count(shard)
    return None if count is None else [Part(shard, index, count) for index in range(item.offset, count, item.stride)]


def units(outline: Outline, source: str, part: Part) -> list[Unit]:
    """Everything that a part needs from one source: original, attacks, clean predictions, transfer results."""
    original = Unit(outline.dataset, part)
    adversarial = [replace(original, source=source, attack=attack) for attack in outline.attacks]
    return [
        original,
        *adversarial,
        *(replace(unit, target=target) for unit in (original, *adversarial) for target in outline.targets),
    ]
