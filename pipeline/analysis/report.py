"""Success rates of a store, with denominators and 95% intervals, computed from its committed predictions.

Rates are computed when a store is read, from every image's clean and adversarial prediction. An untargeted attack
succeeds if the prediction is not the label, a targeted one if the prediction is the target class. An abstention is
neither the label nor the target class. An image whose label is the target class does not count. Every rate is given
under three denominators:

    all       every image scored
    target    images that this target classifies correctly when clean
    joint     images that every target classifies correctly when clean (as in the paper and those it builds on)
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.ledger import Ledger, open_ledger
from pipeline.results.chance import chance_warning
from pipeline.results.denominators import Denominator, all_correct, denominator_masks, joint_targets
from pipeline.results.intervals import PooledRate, Rate
from pipeline.results.predictions import (
    StoredPredictions,
    group_by_part,
    is_white_box,
    read_model_identities,
    read_predictions,
)


@dataclass(frozen=True)
class Success:
    """Success of one attack from one source on one target.

    Attributes:
        dataset: Identity of the dataset.
        source: Name of the source.
        source_id: Identity of the source.
        attack: Name of the attack.
        attack_id: Identity of the attack.
        epsilon: Budget on [0, 1].
        norm: Norm of the budget: `linf` or `l2`.
        target: Name of the target.
        target_id: Identity of the target.
        policy: How images were resized to the target's input.
        rates: Success rate under each denominator.
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
        """The budget as text: `8/255`, or `3 in L2`."""
        return budget(self.epsilon, self.norm)


@dataclass(frozen=True)
class PooledSuccess:
    """Success of one attack from one source, pooled over several targets.

    Attributes:
        dataset: Identity of the dataset.
        source: Name of the source.
        source_id: Identity of the source.
        attack: Name of the attack.
        attack_id: Identity of the attack.
        targets: Number of targets.
        rates: Success rate under each denominator, over pairs of image and target.
    """

    dataset: str
    source: str
    source_id: str
    attack: str
    attack_id: str
    targets: int
    rates: dict[Denominator, PooledRate]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one target on the clean originals."""

    dataset: str
    target: str
    target_id: str
    policy: str
    correct: Rate


@dataclass(frozen=True)
class Report:
    """All rates of a store, and what is still missing in it.

    Attributes:
        success: One entry per dataset × source × attack × target.
        transfer: One entry per dataset × source × attack, pooled over the targets that are not the source itself.
        white_box: The same, pooled over the targets that are the source or a member of the source ensemble, without
            a defense.
        accuracy: One entry per dataset × target.
        joint: Dataset → the targets whose clean predictions define the joint denominator.
        images: Dataset → numbers of images read, usable and quarantined.
        unscored: Transfer results left out because the target's clean predictions of their part are missing.
        missing_shards: Shards of the recorded plans without any committed file.
        missing_results: Files of the recorded plans that are not committed, in all other shards.
        label_warnings: Dataset → why its labels may be wrong, where no target is better than chance.
    """

    success: list[Success]
    transfer: list[PooledSuccess]
    white_box: list[PooledSuccess]
    accuracy: list[Accuracy]
    joint: dict[str, list[str]]
    images: dict[str, dict[str, int]]
    unscored: int
    missing_shards: int
    missing_results: int
    label_warnings: dict[str, str] = field(default_factory=dict)


def of(store: str | Path) -> Report:
    """Success rates of a store.

    Args:
        store: A folder, or s3://bucket/prefix.

    Raises:
        RecipeError: It is neither.
        MissingError: No run has written there.
        IntegrityError: A result file is damaged, or two result files of a part hold different images.
    """
    return summarise(open_ledger(store))


def summarise(ledger: Ledger) -> Report:
    """Success rates of a store, added up part by part.

    Raises:
        IntegrityError: A result file is damaged, or two result files of a part hold different images.
        StorageError: The store failed.
    """
    clean = set(ledger.list_units("clean"))
    transfer = list(ledger.list_units("transfer"))
    ready = [unit for unit in transfer if replace(unit, source="", attack="") in clean]
    joint = joint_targets(clean)
    attacked = group_by_part(ready)
    sources, targets = read_model_identities(ledger)
    totals = _Totals()
    for (dataset, part), clean_units in sorted(group_by_part(clean).items()):
        tables = {table.unit.target: table for table in read_predictions(ledger, clean_units)}
        if not tables:
            continue
        totals.add_accuracy(tables.values())
        joint_correct = all_correct(tables, joint[dataset])
        groups: dict[tuple[str, ...], list[_CountedPredictions]] = defaultdict(list)
        for table in read_predictions(ledger, attacked[dataset, part]):
            unit = table.unit
            counted = _CountedPredictions(table, denominator_masks(table, tables[unit.target], joint_correct))
            totals.add_success(counted)
            white_box = is_white_box(unit, sources, targets)
            if white_box and "defenses" in targets[unit.target]:
                continue  # the source behind a defense counts neither as transfer nor as white-box
            groups["white-box" if white_box else "transfer", unit.dataset, unit.source, unit.attack].append(counted)
        for key, group in groups.items():
            totals.add_pooled(key, group)
    images = {*ledger.list_units("original"), *ledger.list_units("adversarial")}
    missing_shards, missing_results = ledger.count_missing({*images, *clean, *transfer})
    return Report(
        success=list(totals.success.values()),
        transfer=[row for key, row in totals.pooled.items() if key[0] == "transfer"],
        white_box=[row for key, row in totals.pooled.items() if key[0] == "white-box"],
        accuracy=list(totals.accuracy.values()),
        joint=joint,
        images=_image_counts(ledger),
        unscored=len(transfer) - len(ready),
        missing_shards=missing_shards,
        missing_results=missing_results,
        label_warnings=_label_warnings(ledger, totals.accuracy.values()),
    )


def budget(epsilon: float, norm: str) -> str:
    """A budget as text: `8/255`, or `3 in L2`."""
    return f"{epsilon * 255:.3g}/255" if norm == "linf" else f"{epsilon:.3g} in L2"


def _accuracy(clean: StoredPredictions) -> Accuracy:
    """Accuracy over one file of clean predictions."""
    return Accuracy(
        dataset=clean.unit.dataset,
        target=clean.constant("target"),
        target_id=clean.unit.target,
        policy=clean.constant("policy"),
        correct=_rate(clean.correct),
    )


@dataclass(frozen=True)
class _CountedPredictions:
    """One file of transfer predictions, and which of its images count under each denominator, (rows,) bool."""

    table: StoredPredictions
    counted: dict[Denominator, np.ndarray]

    def success(self) -> Success:
        """Success over this file."""
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


def _pooled_success(files: list[_CountedPredictions]) -> PooledSuccess:
    """Success of one attack over one part, pooled over the targets of these files."""
    unit, constant = files[0].table.unit, files[0].table.constant
    return PooledSuccess(
        dataset=unit.dataset,
        source=constant("source"),
        source_id=unit.source,
        attack=constant("attack"),
        attack_id=unit.attack,
        targets=len(files),
        rates={
            name: PooledRate.over(
                np.sum([file.table.fooled & file.counted[name] for file in files], axis=0),
                np.sum([file.counted[name] for file in files], axis=0),
            )
            for name in files[0].counted
        },
    )


@dataclass
class _Totals:
    """Rates added up over the parts read so far."""

    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    success: dict[str, Success] = field(default_factory=dict)
    pooled: dict[tuple[str, ...], PooledSuccess] = field(default_factory=dict)

    def add_accuracy(self, clean: Iterable[StoredPredictions]) -> None:
        """Adds files of clean predictions."""
        for table in clean:
            row, total = _accuracy(table), self.accuracy.get(table.unit.scope)
            self.accuracy[table.unit.scope] = replace(row, correct=row.correct + total.correct) if total else row

    def add_success(self, file: _CountedPredictions) -> None:
        """Adds one file of transfer predictions."""
        scope = file.table.unit.scope
        self.success[scope] = _add(self.success.get(scope), file.success())

    def add_pooled(self, key: tuple[str, ...], files: list[_CountedPredictions]) -> None:
        """Adds one attack's files of one part, pooled over their targets."""
        self.pooled[key] = _add(self.pooled.get(key), _pooled_success(files))


_Row = TypeVar("_Row", Success, PooledSuccess)


def _add(total: _Row | None, row: _Row) -> _Row:
    """The total of the parts before, with one more part added."""
    if total is None:
        return row
    if isinstance(row, PooledSuccess) and isinstance(total, PooledSuccess):
        row = replace(row, targets=max(row.targets, total.targets))
    return replace(row, rates={name: total.rates[name] + rate for name, rate in row.rates.items()})


def _label_warnings(ledger: Ledger, accuracies: Iterable[Accuracy]) -> dict[str, str]:
    by_dataset: dict[str, dict[str, Rate]] = defaultdict(dict)
    for row in accuracies:
        by_dataset[row.dataset][row.target] = row.correct
    plans = [ledger.read_plan(key) for key in ledger.plan_keys()] if by_dataset else []
    classes = {plan["dataset"]: plan.get("data", {}).get("classes") for plan in plans}
    warnings = {
        dataset: chance_warning(accuracy, classes[dataset])
        for dataset, accuracy in by_dataset.items()
        if classes.get(dataset)
    }
    return {dataset: warning for dataset, warning in warnings.items() if warning is not None}


def _image_counts(ledger: Ledger) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {"n_in": 0, "n_ok": 0, "n_quarantined": 0})
    for marker in ledger.read_markers(ledger.list_units("original")):
        for name in totals[marker.unit.dataset]:
            totals[marker.unit.dataset][name] += marker.fact(name)
    return dict(totals)


def _rate(hits: np.ndarray) -> Rate:
    return Rate(int(hits.sum()), len(hits))
