"""How far a recorded plan is, by the names of markers alone, and what stages and runs add; without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from pipeline.data.sample import Part
from pipeline.ledger import Ledger, Unit

# Source, attack and target, by name.
Cell: TypeAlias = tuple[str, str, str]
# What a stage's threads spend their time on; they work side by side, so that together it may be more than the clock's.
Phase = Literal["get", "decode", "gradient", "answer", "encode", "put"]
K = TypeVar("K")
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Made:
    """What a stage has added to the store, what that took, and what came of it.

    Attributes:
        parts: Adversarial parts, or result files.
        images: Images in them.
        quarantined: Images that could not be used, of the original parts that were made on the way.
        seconds: By phase: fetching, decoding, attacking, asking models, encoding, storing.
        counted: By source, attack and target: images that the target gets right when clean, and that were attacked.
        fooled: Of these, those on which the attack succeeded.
    """

    parts: int = 0
    images: int = 0
    quarantined: int = 0
    seconds: Mapping[Phase, float] = field(default_factory=dict)
    counted: Mapping[Cell, int] = field(default_factory=dict)
    fooled: Mapping[Cell, int] = field(default_factory=dict)

    def __add__(self, other: "Made") -> "Made":
        return Made(
            self.parts + other.parts,
            self.images + other.images,
            self.quarantined + other.quarantined,
            _summed(self.seconds, other.seconds),
            _summed(self.counted, other.counted),
            _summed(self.fooled, other.fooled),
        )


def _summed(one: Mapping[K, N], other: Mapping[K, N]) -> dict[K, N]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


@dataclass(frozen=True)
class Progress:
    """How far a run is, by the store alone.

    Attributes:
        attacked: Adversarial parts committed.
        to_attack: Adversarial parts that the shards known so far will have.
        scored: Result files committed, clean and transfer.
        to_score: Result files that the shards known so far will have.
        shards_known: Shards whose number of parts is known.
        shards: All shards of the run.
    """

    attacked: int
    to_attack: int
    scored: int
    to_score: int
    shards_known: int
    shards: int


@dataclass(frozen=True)
class Tally:
    """A run, as its driver sees it.

    Attributes:
        items: How many had work to do.
        items_left: How many are not through.
        workers: By stage, how many are at an item.
        attacked: What generators have made.
        scored: What scorers have made.
        tries_failed: How many tries of an item failed.
        failed: How many items were given up.
        seconds: Since it began.
    """

    items: int
    items_left: int
    workers: Mapping[Literal["generator", "scorer"], int]
    attacked: Made
    scored: Made
    tries_failed: int
    failed: int
    seconds: float


def progress(described: Mapping[str, Any], ledger: Ledger) -> Progress:
    """How far a plan is, by one listing of each of its folders of markers.

    Args:
        described: The plan, as `Plan.describe` gives it and `Ledger.plan` reads it.
        ledger: What has been made.
    """
    dataset, names = described["dataset"], described["shards"]
    attacks = [(source, attack) for source in described["sources"] for attack in described["attacks"]]
    part = Part("", 0, 1)
    original = Unit(dataset, part).scope
    attacked = [Unit(dataset, part, source, attack).scope for source, attack in attacks]
    scored = [
        Unit(dataset, part, source, attack, target).scope
        for source, attack in [("", ""), *attacks]
        for target in described["targets"]
    ]
    committed = ledger.committed([original, *attacked, *scored])
    counts = {name: count for name in names if (count := committed.count(name)) is not None}
    parts = sum(counts.values())

    def standing(folders: Sequence[str]) -> int:
        return sum(committed.bits(scope, name).bit_count() for scope in folders for name in counts)

    return Progress(
        attacked=standing(attacked),
        to_attack=parts * len(attacked),
        scored=standing(scored),
        to_score=parts * len(scored),
        shards_known=len(counts),
        shards=len(names),
    )
