"""Progress of a recorded plan, by the names of markers alone, and totals of stages and runs. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from pipeline.data.sample import Part
from pipeline.ledger import CommittedParts, Ledger, Unit

# Names of a source, an attack and a target.
SourceAttackTarget: TypeAlias = tuple[str, str, str]
# What a stage's threads spend their time on. They work in parallel, so the sum may exceed the wall clock.
Phase = Literal["get", "decode", "gradient", "answer", "encode", "put"]
K = TypeVar("K")
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class StageTotals:
    """Counts and seconds of a stage's work.

    Attributes:
        parts: Parts added to the store: adversarial parts, or result files.
        images: Images in them.
        quarantined: Unusable images in the original parts that were added on the way.
        seconds: By phase: fetching, decoding, attacking, predicting, encoding, storing.
        eligible: Attacked images that the target classifies correctly when clean.
        fooled: Those of the eligible on which the attack succeeded.
        clean: By target, clean images that it has classified.
        correct: Those of the clean that it classifies correctly.
        originals: Original parts that it has made; another worker may have added the same ones first.
    """

    parts: int = 0
    images: int = 0
    quarantined: int = 0
    seconds: Mapping[Phase, float] = field(default_factory=dict)
    eligible: Mapping[SourceAttackTarget, int] = field(default_factory=dict)
    fooled: Mapping[SourceAttackTarget, int] = field(default_factory=dict)
    clean: Mapping[str, int] = field(default_factory=dict)
    correct: Mapping[str, int] = field(default_factory=dict)
    originals: int = 0

    @property
    def units(self) -> int:
        """Parts of all kinds that are in the store now."""
        return self.parts + self.originals

    def __add__(self, other: "StageTotals") -> "StageTotals":
        return StageTotals(
            self.parts + other.parts,
            self.images + other.images,
            self.quarantined + other.quarantined,
            _sum_by_key(self.seconds, other.seconds),
            _sum_by_key(self.eligible, other.eligible),
            _sum_by_key(self.fooled, other.fooled),
            _sum_by_key(self.clean, other.clean),
            _sum_by_key(self.correct, other.correct),
            self.originals + other.originals,
        )


def _sum_by_key(first: Mapping[K, N], second: Mapping[K, N]) -> dict[K, N]:
    return {key: first.get(key, 0) + second.get(key, 0) for key in {**first, **second}}


@dataclass(frozen=True)
class Progress:
    """Progress of a plan, by the store alone.

    Attributes:
        attacked: Committed adversarial parts.
        to_attack: Adversarial parts of the plan, in shards whose number of parts is known.
        scored: Committed result files, clean and transfer.
        to_score: Result files of the plan, in shards whose number of parts is known.
        shards_known: Shards whose number of parts is known.
        shards: All shards of the plan.
    """

    attacked: int
    to_attack: int
    scored: int
    to_score: int
    shards_known: int
    shards: int


@dataclass(frozen=True)
class Tally:
    """State of a run, as its driver counts it.

    Attributes:
        items: Items that had work to do.
        items_left: Items that are not finished.
        workers: By stage, the number of workers with an item.
        attacked: Totals of the generators.
        scored: Totals of the scorers.
        tries_failed: Failed tries of items.
        failed: Items given up.
        seconds: Time since the run began.
    """

    items: int
    items_left: int
    workers: Mapping[Literal["generator", "scorer"], int]
    attacked: StageTotals
    scored: StageTotals
    tries_failed: int
    failed: int
    seconds: float


def measure_progress(plan: Mapping[str, Any], ledger: Ledger) -> Progress:
    """Progress of a recorded plan, as `Ledger.read_plan` returns it."""
    return count_progress(plan, list_plan(plan, ledger))


def list_plan(plan: Mapping[str, Any], ledger: Ledger) -> CommittedParts:
    """What is committed of a recorded plan, from one listing of each of its folders of markers."""
    original, attacked, scored = _plan_scopes(plan)
    return ledger.list_committed([original, *attacked, *scored], shards=plan["shards"])


def count_progress(
    plan: Mapping[str, Any], committed: CommittedParts, part_counts: Mapping[str, int] | None = None
) -> Progress:
    """Progress of a plan.

    Args:
        plan: The recorded plan.
        committed: What is committed of it.
        part_counts: Shard → number of parts, as far as it is known of shards without a committed part.
    """
    _, attacked, scored = _plan_scopes(plan)
    shards = plan["shards"]
    counts = {shard: committed.part_count(shard) or (part_counts or {}).get(shard) for shard in shards}
    known = {shard: count for shard, count in counts.items() if count is not None}
    parts = sum(known.values())

    def count_committed(scopes: Sequence[str]) -> int:
        return sum(committed.part_bits(scope, shard).bit_count() for scope in scopes for shard in known)

    return Progress(
        attacked=count_committed(attacked),
        to_attack=parts * len(attacked),
        scored=count_committed(scored),
        to_score=parts * len(scored),
        shards_known=len(known),
        shards=len(shards),
    )


def _plan_scopes(plan: Mapping[str, Any]) -> tuple[str, list[str], list[str]]:
    """The scopes of a plan's originals, of its adversarial images, and of its results."""
    dataset, part = plan["dataset"], Part("", 0, 1)
    attacks = [(source, attack) for source in plan["sources"] for attack in plan["attacks"]]
    return (
        Unit(dataset, part).scope,
        [Unit(dataset, part, source, attack).scope for source, attack in attacks],
        [
            Unit(dataset, part, source, attack, target).scope
            for source, attack in [("", ""), *attacks]
            for target in plan["targets"]
        ],
    )
