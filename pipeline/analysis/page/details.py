"""Details of one attack: success by class, class changes, norms of its perturbations."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.analysis.report import PooledSuccess
from pipeline.analysis.sample_view import evenly_spaced
from pipeline.data import shards
from pipeline.ledger import Ledger, Unit
from pipeline.results.denominators import Denominator, all_correct, denominator_masks, joint_targets
from pipeline.results.intervals import PooledRate
from pipeline.results.predictions import (
    StoredPredictions,
    group_by_part,
    is_white_box,
    read_model_identities,
    read_predictions,
)

# Norms are read from the samples of at most this number of parts per attack.
_MAX_PARTS = 8


@dataclass(frozen=True)
class AttackDetails:
    """Results of one attack from one source, on all targets that are not the source itself.

    Attributes:
        by_class: Label → success, over pairs of image and target.
        class_changes: (clean prediction, adversarial prediction) → number of pairs of image and target in which the
            first is correct and the second is not.
    """

    by_class: dict[int, PooledRate]
    class_changes: Counter[tuple[int, int]]


@dataclass(frozen=True)
class PerturbationNorms:
    """Norms of stored perturbations, on [0, 1].

    Attributes:
        linf: Largest change of a value, (images,).
        l2: Euclidean norm, (images,).
        parts_read: Number of parts that were read.
        parts: Number of parts in the store.
    """

    linf: np.ndarray
    l2: np.ndarray
    parts_read: int
    parts: int


def attack_details(ledger: Ledger, row: PooledSuccess, *, denominator: Denominator) -> AttackDetails:
    """Success by class and class changes of an attack.

    Args:
        ledger: The store.
        row: The attack, with its dataset and source.
        denominator: Which pairs of image and target count in success by class.
    """
    clean_units = set(ledger.list_units(f"clean/{row.dataset}"))
    joint = joint_targets(clean_units).get(row.dataset, [])
    sources, targets = read_model_identities(ledger)
    scored = [
        unit
        for unit in ledger.list_units(f"transfer/{row.dataset}/{row.source_id}/{row.attack_id}")
        if replace(unit, source="", attack="") in clean_units and not is_white_box(unit, sources, targets)
    ]
    attacked = group_by_part(scored)
    by_class: dict[int, PooledRate] = defaultdict(PooledRate)
    class_changes: Counter[tuple[int, int]] = Counter()
    for key, units in sorted(group_by_part(clean_units).items()):
        clean = {table.unit.target: table for table in read_predictions(ledger, units)}
        tables = list(read_predictions(ledger, attacked[key])) if clean else []
        if not tables:
            continue
        for label, rate in _success_by_class(tables, clean, all_correct(clean, joint), denominator):
            by_class[label] += rate
        for table in tables:
            class_changes.update(_class_changes(table, clean[table.unit.target]))
    return AttackDetails(dict(by_class), class_changes)


def _success_by_class(
    tables: Sequence[StoredPredictions],
    clean: dict[str, StoredPredictions],
    joint_correct: np.ndarray,
    denominator: Denominator,
) -> Iterator[tuple[int, PooledRate]]:
    counted = [denominator_masks(table, clean[table.unit.target], joint_correct)[denominator] for table in tables]
    fooled_targets = np.sum([table.fooled & mask for table, mask in zip(tables, counted, strict=True)], axis=0)
    counted_targets = np.sum(counted, axis=0)
    labels = tables[0].column("label")
    for label in np.unique(labels):
        of_class = labels == label
        yield int(label), PooledRate.over(fooled_targets[of_class], counted_targets[of_class])


def _class_changes(table: StoredPredictions, clean: StoredPredictions) -> Iterator[tuple[int, int]]:
    lost = clean.correct & ~table.correct & ~table.column("abstained")
    before, after = clean.column("prediction")[lost], table.column("prediction")[lost]
    return zip(before.tolist(), after.tolist(), strict=True)


def perturbation_norms(ledger: Ledger, row: PooledSuccess) -> PerturbationNorms:
    """Norms of an attack's perturbations, as recorded with its samples; of a large store, from evenly spaced parts."""
    units = sorted(ledger.list_units(f"adversarial/{row.dataset}/{row.source_id}/{row.attack_id}"))
    read = evenly_spaced(units, _MAX_PARTS)
    records = [record for unit in read for record in _sample_records(ledger, unit)]
    linf, l2 = (np.array([record[name] for record in records], dtype=np.float64) for name in ("linf", "l2"))
    return PerturbationNorms(linf, l2, len(read), len(units))


def _sample_records(ledger: Ledger, unit: Unit) -> Iterator[dict[str, float]]:
    marker = ledger.read_marker(unit)
    for sample in shards.read_records(ledger.read_data(marker), name=marker.object):
        yield json.loads(sample["json"])
