"""Stored predictions → success rates with denominators and intervals.

Rates are computed here, at read time, from every image's clean and adversarial prediction. Success is prediction ≠
label, or for a targeted attack prediction = target class. Three denominators are in use, and all are given:

    all       every image scored
    target    images that this target classifies correctly when clean
    joint     images that every target classifies correctly when clean (the paper's lineage)
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, overload

import numpy as np
from scipy.stats import binomtest

from pipeline import results
from pipeline.errors import IntegrityError
from pipeline.ledger import Ledger, Unit
from pipeline.sample import Part

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
        epsilon: L∞ budget on [0, 1].
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
    target: str
    target_id: str
    policy: str
    rates: dict[Denominator, Rate]


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
    joint, attacked = _joint_targets(clean), _by_part(ready)
    accuracy: dict[str, Accuracy] = {}
    success: dict[str, Success] = {}
    for place, units in sorted(_by_part(clean).items()):
        tables = {table.unit.target: table for table in _tables(ledger, units)}
        if not tables:
            continue
        rights = [tables[target].correct for target in joint[place[0]]]
        # Where no target has seen every part, the joint denominator is empty rather than another one in each part.
        everywhere = (
            np.logical_and.reduce(rights) if rights else np.zeros(len(next(iter(tables.values())).correct), bool)
        )
        for table in tables.values():
            accuracy[table.unit.scope] = _add(accuracy.get(table.unit.scope), table.accuracy())
        for table in _tables(ledger, attacked[place]):
            row = table.success(tables[table.unit.target], everywhere)
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


@dataclass(frozen=True)
class _Table:
    """One result file: its unit, its address and its rows."""

    unit: Unit
    where: str
    table: results.Table

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, (rows,)."""
        return np.asarray(self.table.column(name))

    def constant(self, name: str) -> Any:
        """The value of a column that is the same in every row."""
        return self.table.column(name)[0].as_py()

    @property
    def correct(self) -> np.ndarray:
        """Where the prediction is the label, (rows,) bool."""
        return np.asarray(self.column("prediction") == self.column("label"))

    def accuracy(self) -> Accuracy:
        """What a file of clean predictions adds."""
        return Accuracy(
            dataset=self.unit.dataset,
            target=self.constant("target"),
            target_id=self.unit.target,
            policy=self.constant("policy"),
            correct=_rate(self.correct),
        )

    def success(self, clean: "_Table", everywhere: np.ndarray) -> Success:
        """What a file of transfer results adds.

        Args:
            clean: The same target's predictions on the same images, clean.
            everywhere: Where every target is right when clean, (rows,) bool.

        Raises:
            IntegrityError: The two files hold different images.
        """
        if not self.table.column("key").equals(clean.table.column("key")):
            raise IntegrityError(f"{self.where}: holds other images than {clean.where}; run verify")
        fooled = self._fooled()
        return Success(
            dataset=self.unit.dataset,
            source=self.constant("source"),
            source_id=self.unit.source,
            attack=self.constant("attack"),
            attack_id=self.unit.attack,
            epsilon=self.constant("epsilon"),
            target=self.constant("target"),
            target_id=self.unit.target,
            policy=self.constant("policy"),
            rates={"all": _rate(fooled), "target": _rate(fooled[clean.correct]), "joint": _rate(fooled[everywhere])},
        )

    def _fooled(self) -> np.ndarray:
        wanted = self.table.column("target_class")
        reached = self.column("prediction") == np.asarray(wanted.fill_null(-1))
        return np.where(np.asarray(wanted.is_null()), ~self.correct, reached)


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


def _by_part(units: Iterable[Unit]) -> dict[tuple[str, Part], list[Unit]]:
    grouped: dict[tuple[str, Part], list[Unit]] = defaultdict(list)
    for unit in sorted(units):
        grouped[unit.dataset, unit.part].append(unit)
    return grouped


def _tables(ledger: Ledger, units: Iterable[Unit]) -> Iterable[_Table]:
    """The result files of units; those of parts whose images were all quarantined hold nothing and are passed over."""
    for marker in ledger.markers(units):
        table = results.read(ledger.read(marker), name=ledger.storage.at(marker.object))
        if table.num_rows:
            yield _Table(marker.unit, ledger.storage.at(marker.object), table)


def _joint_targets(clean: Iterable[Unit]) -> dict[str, list[str]]:
    """Per dataset, the targets that have seen every part that any target has seen."""
    seen: dict[str, dict[str, set[Part]]] = defaultdict(lambda: defaultdict(set))
    for unit in clean:
        seen[unit.dataset][unit.target].add(unit.part)
    return {
        dataset: sorted(target for target, parts in targets.items() if parts == set().union(*targets.values()))
        for dataset, targets in seen.items()
    }


def _images(ledger: Ledger) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {"n_in": 0, "n_ok": 0, "n_quarantined": 0})
    for marker in ledger.markers(ledger.units("original")):
        for name in totals[marker.unit.dataset]:
            totals[marker.unit.dataset][name] += marker.fact(name)
    return dict(totals)


def _rate(hits: np.ndarray) -> Rate:
    return Rate(int(hits.sum()), len(hits))
