"""Stored predictions → success rates with denominators and intervals.

Rates are computed here, at read time, from every image's clean and adversarial prediction. Success is prediction ≠
label, or for a targeted attack prediction = target class; a target that abstains is not right, and not where a targeted
attack wants it, and an image whose label is what is wanted does not count. Three denominators are in use, and all are
given:

    all       every image scored
    target    images that this target classifies correctly when clean
    joint     images that every target classifies correctly when clean (the paper's lineage)
"""

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, overload

import numpy as np
from scipy.stats import binomtest

from pipeline.ledger import Ledger
from pipeline.predictions import Predictions, all_correct, by_part, joint_targets, predictions

Denominator = Literal["all", "target", "joint"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """A count over a denominator.

    Attributes:
        count: How many.
        n: Of how many.
    """

    count: int
    n: int

    @property
    def rate(self) -> float | None:
        """count/n, or None over an empty denominator."""
        return self.count / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95% score interval, or None over an empty denominator.

        References:
            Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
        """
        if not self.n:
            return None
        found = binomtest(self.count, self.n).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)

    def __add__(self, other: "Rate") -> "Rate":
        return Rate(self.count + other.count, self.n + other.n)


@dataclass(frozen=True)
class Success:
    """How one attack from one source does on one target.

    Attributes:
        dataset: Identity of the images.
        source: Name of the model attacked.
        source_id: Its identity.
        attack: Name of the attack.
        attack_id: Its identity.
        epsilon: Budget on [0, 1].
        norm: Of the budget: `linf` or `l2`.
        target: Name of the model scored.
        target_id: Its identity.
        policy: How the image became the target's input.
        rates: Success under each denominator.
    """

    dataset: str
    source: str
    source_id: str
    attack: str
    attack_id: str
    epsilon: float
    norm: str
    target: str
    target_id: str
    policy: str
    rates: dict[Denominator, Rate]

    @property
    def budget(self) -> str:
        """ε as people write it."""
        return budget(self.epsilon, self.norm)


def budget(epsilon: float, norm: str) -> str:
    """ε as people write it: `8/255`, or `3 in L2`."""
    return f"{epsilon * 255:.3g}/255" if norm == "linf" else f"{epsilon:.3g} in L2"


@dataclass(frozen=True)
class Accuracy:
    """How one target does on the clean originals."""

    dataset: str
    target: str
    target_id: str
    policy: str
    correct: Rate


@dataclass(frozen=True)
class Report:
    """Everything that a store's committed results say.

    Attributes:
        success: One entry per dataset × source × attack × target.
        accuracy: One entry per dataset × target.
        joint: Dataset → the targets whose clean predictions define the joint denominator.
        images: Dataset → images in, usable, quarantined.
        unscored: Transfer results left out because their part has no clean predictions of that target yet.
        missing_shards: Shards that the recorded plans name and of which nothing is committed.
        missing_results: Markers that the recorded plans want, of the other shards, and that do not stand.
    """

    success: list[Success]
    accuracy: list[Accuracy]
    joint: dict[str, list[str]]
    images: dict[str, dict[str, int]]
    unscored: int
    missing_shards: int
    missing_results: int


def summarise(ledger: Ledger) -> Report:
    """Reads every committed result of a store, part by part, and adds up the rates.

    Raises:
        IntegrityError: A result file is damaged, or two do not speak of the same images.
        StorageError: The store failed.
    """
    clean = set(ledger.units("clean"))
    transfer = list(ledger.units("transfer"))
    ready = [unit for unit in transfer if replace(unit, source="", attack="") in clean]
    joint, attacked = joint_targets(clean), by_part(ready)
    accuracy: dict[str, Accuracy] = {}
    success: dict[str, Success] = {}
    for place, units in sorted(by_part(clean).items()):
        tables = {table.unit.target: table for table in predictions(ledger, units)}
        if not tables:
            continue
        everywhere = all_correct(tables, joint[place[0]])
        for table in tables.values():
            accuracy[table.unit.scope] = _add(accuracy.get(table.unit.scope), _accuracy(table))
        for table in predictions(ledger, attacked[place]):
            row = _success(table, tables[table.unit.target], everywhere)
            success[table.unit.scope] = _add(success.get(table.unit.scope), row)
    missing = ledger.missing({*ledger.units("original"), *ledger.units("adversarial"), *clean, *transfer})
    return Report(
        success=list(success.values()),
        accuracy=list(accuracy.values()),
        joint=joint,
        images=_images(ledger),
        unscored=len(transfer) - len(ready),
        missing_shards=missing[0],
        missing_results=missing[1],
    )


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values: every rate with its count, denominator and 95% interval."""

    def plain(rate: Rate) -> dict[str, Any]:
        return {**asdict(rate), "rate": rate.rate, "interval": rate.interval}

    return {
        "confidence": CONFIDENCE,
        "success": [
            {**asdict(row), "rates": {name: plain(rate) for name, rate in row.rates.items()}} for row in report.success
        ],
        "accuracy": [{**asdict(row), "correct": plain(row.correct)} for row in report.accuracy],
        "joint": report.joint,
        "images": report.images,
        "unscored": report.unscored,
        "missing_shards": report.missing_shards,
        "missing_results": report.missing_results,
    }


def _accuracy(clean: Predictions) -> Accuracy:
    """What a file of clean predictions adds."""
    return Accuracy(
        dataset=clean.unit.dataset,
        target=clean.constant("target"),
        target_id=clean.unit.target,
        policy=clean.constant("policy"),
        correct=_rate(clean.correct),
    )


def _success(transfer: Predictions, clean: Predictions, everywhere: np.ndarray) -> Success:
    """What a file of transfer results adds.

    Args:
        transfer: The file.
        clean: The same target's predictions on the same images, clean.
        everywhere: Where every target is right when clean, (rows,) bool.

    Raises:
        IntegrityError: The two files hold different images.
    """
    transfer.require_images_of(clean)
    fooled, counted = transfer.fooled, transfer.attacked
    return Success(
        dataset=transfer.unit.dataset,
        source=transfer.constant("source"),
        source_id=transfer.unit.source,
        attack=transfer.constant("attack"),
        attack_id=transfer.unit.attack,
        epsilon=transfer.constant("epsilon"),
        norm=transfer.constant("norm"),
        target=transfer.constant("target"),
        target_id=transfer.unit.target,
        policy=transfer.constant("policy"),
        rates={
            "all": _rate(fooled[counted]),
            "target": _rate(fooled[counted & clean.correct]),
            "joint": _rate(fooled[counted & everywhere]),
        },
    )


@overload
def _add(so_far: Success | None, row: Success) -> Success: ...
@overload
def _add(so_far: Accuracy | None, row: Accuracy) -> Accuracy: ...
def _add(so_far: Success | Accuracy | None, row: Success | Accuracy) -> Success | Accuracy:
    """The same row over one part more."""
    if so_far is None:
        return row
    if isinstance(row, Accuracy):
        assert isinstance(so_far, Accuracy)
        return replace(row, correct=so_far.correct + row.correct)
    assert isinstance(so_far, Success)
    return replace(row, rates={name: so_far.rates[name] + rate for name, rate in row.rates.items()})


def _images(ledger: Ledger) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {"n_in": 0, "n_ok": 0, "n_quarantined": 0})
    for marker in ledger.markers(ledger.units("original")):
        for name in totals[marker.unit.dataset]:
            totals[marker.unit.dataset][name] += marker.fact(name)
    return dict(totals)


def _rate(hits: np.ndarray) -> Rate:
    return Rate(int(hits.sum()), len(hits))
