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
from typing import Any, TypeVar

import numpy as np

from pipeline.ledger import Ledger, opened
from pipeline.results.intervals import CONFIDENCE, PooledRate, Rate
from pipeline.results.predictions import (
    Denominator,
    Predictions,
    all_correct,
    by_part,
    is_itself,
    joint_targets,
    networks,
    predictions,
)


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


@dataclass(frozen=True)
class Overall:
    """How one attack from one source does on several targets together.

    Attributes:
        dataset: Identity of the images.
        source: Name of the model attacked.
        source_id: Its identity.
        attack: Name of the attack.
        attack_id: Its identity.
        targets: How many.
        rates: Success under each denominator, over pairs of image and target.
    """

    dataset: str
    source: str
    source_id: str
    attack: str
    attack_id: str
    targets: int
    rates: dict[Denominator, PooledRate]


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
        transfer: One entry per dataset × source × attack: on all targets that are not the source itself.
        white_box: Likewise: on those that are, or are one of an ensemble, and not behind a defense.
        accuracy: One entry per dataset × target.
        joint: Dataset → the targets whose clean predictions define the joint denominator.
        images: Dataset → images in, usable, quarantined.
        unscored: Transfer results left out because their part has no clean predictions of that target yet.
        missing_shards: Shards that the recorded plans name and of which nothing is committed.
        missing_results: Markers that the recorded plans want, of the other shards, and that do not stand.
    """

    success: list[Success]
    transfer: list[Overall]
    white_box: list[Overall]
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
    sources, targets = networks(ledger)
    accuracy: dict[str, Accuracy] = {}
    success: dict[str, Success] = {}
    together: dict[tuple[str, ...], Overall] = {}
    for place, units in sorted(by_part(clean).items()):
        tables = {table.unit.target: table for table in predictions(ledger, units)}
        if not tables:
            continue
        everywhere = all_correct(tables, joint[place[0]])
        for table in tables.values():
            here, before = _accuracy(table), accuracy.get(table.unit.scope)
            accuracy[table.unit.scope] = replace(here, correct=here.correct + before.correct) if before else here
        alike: dict[tuple[str, ...], list[_Answers]] = defaultdict(list)
        for table in predictions(ledger, attacked[place]):
            row = _Answers(table, table.counted(tables[table.unit.target], everywhere))
            success[table.unit.scope] = _add(success.get(table.unit.scope), row.success())
            itself = is_itself(table.unit, sources, targets)
            if not (itself and "defenses" in targets[table.unit.target]):  # the source behind a defense is neither
                unit, kind = table.unit, "white-box" if itself else "transfer"
                alike[kind, unit.dataset, unit.source, unit.attack].append(row)
        for key, rows in alike.items():
            together[key] = _add(together.get(key), _overall(rows))
    missing = ledger.missing({*ledger.units("original"), *ledger.units("adversarial"), *clean, *transfer})
    return Report(
        success=list(success.values()),
        transfer=[row for key, row in together.items() if key[0] == "transfer"],
        white_box=[row for key, row in together.items() if key[0] == "white-box"],
        accuracy=list(accuracy.values()),
        joint=joint,
        images=_images(ledger),
        unscored=len(transfer) - len(ready),
        missing_shards=missing[0],
        missing_results=missing[1],
    )


@dataclass(frozen=True)
class Line:
    """One attack from one source, as a line of a table of attacks by targets.

    Attributes:
        first: What it does on some target; its names and its budget.
        others: On all targets that are not the source itself; None where there are none.
        cells: On each target; None where it has not been scored.
    """

    first: Success
    others: PooledRate | None
    cells: tuple[Rate | None, ...]


def matrix(report: Report, dataset: str, denominator: Denominator) -> tuple[list[Accuracy], list[Line]]:
    """A dataset's targets, and its attacks on them: source by source, the weakest first by mean success."""
    targets = [row for row in report.accuracy if row.dataset == dataset]
    others = {
        (row.source_id, row.attack_id): row.rates[denominator] for row in report.transfer if row.dataset == dataset
    }
    attacks: dict[tuple[str, str], dict[str, Success]] = defaultdict(dict)
    for row in report.success:
        if row.dataset == dataset:
            attacks[row.source_id, row.attack_id][row.target_id] = row
    lines = [
        Line(
            first=next(iter(found.values())),
            others=others.get(key),
            cells=tuple(
                found[each.target_id].rates[denominator] if each.target_id in found else None for each in targets
            ),
        )
        for key, found in attacks.items()
    ]

    def strength(line: Line) -> tuple[str, float]:
        rates = [
            row.rates[denominator].rate or 0.0 for row in attacks[line.first.source_id, line.first.attack_id].values()
        ]
        return line.first.source_id, sum(rates) / len(rates)

    return targets, sorted(lines, key=strength)


def of(store: str) -> Report:
    """What a store's committed results say.

    Args:
        store: A folder, or s3://bucket/prefix.

    Raises:
        MissingError: No run has written there.
        IntegrityError: A result file is damaged, or two do not speak of the same images.
    """
    return summarise(opened(store))


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values: every rate with its count, denominator and 95% interval."""

    def plain(rate: Rate | PooledRate) -> dict[str, Any]:
        return {**asdict(rate), "rate": rate.rate, "interval": rate.interval}

    def row_of(row: Success | Overall) -> dict[str, Any]:
        return {**asdict(row), "rates": {name: plain(rate) for name, rate in row.rates.items()}}

    return {
        "confidence": CONFIDENCE,
        "success": [row_of(row) for row in report.success],
        "transfer": [row_of(row) for row in report.transfer],
        "white_box": [row_of(row) for row in report.white_box],
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


@dataclass(frozen=True)
class _Answers:
    """A file of transfer results, and which of its images count under each denominator, (rows,) bool."""

    table: Predictions
    counted: dict[Denominator, np.ndarray]

    def success(self) -> Success:
        """What it adds for its target."""
        unit, constant, fooled = self.table.unit, self.table.constant, self.table.fooled
        return Success(
            dataset=unit.dataset,
            source=constant("source"),
            source_id=unit.source,
            attack=constant("attack"),
            attack_id=unit.attack,
            epsilon=constant("epsilon"),
            norm=constant("norm"),
            target=constant("target"),
            target_id=unit.target,
            policy=constant("policy"),
            rates={name: _rate(fooled[counted]) for name, counted in self.counted.items()},
        )


def _overall(rows: list[_Answers]) -> Overall:
    """What one part adds for one attack on several targets."""
    unit, constant = rows[0].table.unit, rows[0].table.constant
    return Overall(
        dataset=unit.dataset,
        source=constant("source"),
        source_id=unit.source,
        attack=constant("attack"),
        attack_id=unit.attack,
        targets=len(rows),
        rates={
            name: PooledRate.over(
                np.sum([row.table.fooled & row.counted[name] for row in rows], axis=0),
                np.sum([row.counted[name] for row in rows], axis=0),
            )
            for name in rows[0].counted
        },
    )


_Row = TypeVar("_Row", Success, Overall)


def _add(so_far: _Row | None, row: _Row) -> _Row:
    """The same row over one part more."""
    if so_far is None:
        return row
    if isinstance(row, Overall) and isinstance(so_far, Overall):
        row = replace(row, targets=max(row.targets, so_far.targets))
    return replace(row, rates={name: so_far.rates[name] + rate for name, rate in row.rates.items()})


def _images(ledger: Ledger) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {"n_in": 0, "n_ok": 0, "n_quarantined": 0})
    for marker in ledger.markers(ledger.units("original")):
        for name in totals[marker.unit.dataset]:
            totals[marker.unit.dataset][name] += marker.fact(name)
    return dict(totals)


def _rate(hits: np.ndarray) -> Rate:
    return Rate(int(hits.sum()), len(hits))
