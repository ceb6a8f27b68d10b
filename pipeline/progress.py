"""How far a recorded plan is, by the names of markers alone, and what stages add; without torch: a look is quick."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ledger import Ledger, Unit
from pipeline.sample import Part


@dataclass(frozen=True)
class Made:
    """What a stage has added to the store.

    Attributes:
        parts: Adversarial parts, or result files.
        images: Images in them.
        quarantined: Images that could not be used, of the original parts that were made on the way.
    """

    parts: int = 0
    images: int = 0
    quarantined: int = 0

    def __add__(self, other: "Made") -> "Made":
        return Made(self.parts + other.parts, self.images + other.images, self.quarantined + other.quarantined)


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
