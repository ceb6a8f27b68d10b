"""What one attack does beyond its rates: class by class, from which class to which, how far it moves an image."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.analysis.report import Overall
from pipeline.data import shards
from pipeline.ledger import Ledger, Unit
from pipeline.results.intervals import PooledRate
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

# Norms are told by the samples themselves: so many parts of each attack are read for them.
_PARTS = 8


@dataclass(frozen=True)
class Details:
    """One attack from one source, on all targets that are not the source itself.

    Attributes:
        by_class: Label → success, over pairs of image and target.
        turned: (the answer when clean, the answer afterwards) → so many pairs, where it was right and is not any more.
    """

    by_class: dict[int, PooledRate]
    turned: Counter[tuple[int, int]]


@dataclass(frozen=True)
class Norms:
    """How far stored adversarial images lie from their originals, on [0, 1].

    Attributes:
        linf: (images,) largest change of a value.
        l2: (images,) Euclidean.
        parts: Of so many parts,
        of_parts: of so many.
    """

    linf: np.ndarray
    l2: np.ndarray
    parts: int
    of_parts: int


def details(ledger: Ledger, row: Overall, *, denominator: Denominator) -> Details:
    """Class by class, and from which class to which.

    Args:
        ledger: The store.
        row: Which dataset, source and attack.
        denominator: Which pairs of image and target count class by class.
    """
    clean = set(ledger.units(f"clean/{row.dataset}"))
    joint = joint_targets(clean).get(row.dataset, [])
    sources, targets = networks(ledger)
    scored = [
        unit
        for unit in ledger.units(f"transfer/{row.dataset}/{row.source_id}/{row.attack_id}")
        if replace(unit, source="", attack="") in clean and not is_itself(unit, sources, targets)
    ]
    attacked = by_part(scored)
    by_class: dict[int, PooledRate] = defaultdict(PooledRate)
    turned: Counter[tuple[int, int]] = Counter()
    for place, units in sorted(by_part(clean).items()):
        own = {found.unit.target: found for found in predictions(ledger, units)}
        tables = list(predictions(ledger, attacked[place])) if own else []
        if not tables:
            continue
        everywhere = all_correct(own, joint)
        for label, rate in _by_class(tables, own, everywhere, denominator):
            by_class[label] += rate
        for table in tables:
            turned.update(_turned(table, own[table.unit.target]))
    return Details(dict(by_class), turned)


def _by_class(
    tables: Sequence[Predictions], clean: dict[str, Predictions], everywhere: np.ndarray, denominator: Denominator
) -> Iterator[tuple[int, PooledRate]]:
    counted = [table.counted(clean[table.unit.target], everywhere)[denominator] for table in tables]
    fooled = np.sum([table.fooled & which for table, which in zip(tables, counted, strict=True)], axis=0)
    asked = np.sum(counted, axis=0)
    labels = tables[0].column("label")
    for label in np.unique(labels):
        here = labels == label
        yield int(label), PooledRate.over(fooled[here], asked[here])


def _turned(table: Predictions, clean: Predictions) -> Iterator[tuple[int, int]]:
    lost = clean.correct & ~table.correct & ~table.column("abstained")
    before, after = clean.column("prediction")[lost], table.column("prediction")[lost]
    return zip(before.tolist(), after.tolist(), strict=True)


def norms(ledger: Ledger, row: Overall) -> Norms:
    """How far an attack moves images, as its samples say: of evenly spaced parts, where there are many."""
    units = sorted(ledger.units(f"adversarial/{row.dataset}/{row.source_id}/{row.attack_id}"))
    chosen = units if len(units) <= _PARTS else [units[index * len(units) // _PARTS] for index in range(_PARTS)]
    said = [each for unit in chosen for each in _said(ledger, unit)]
    linf, l2 = (np.array([each[name] for each in said], dtype=np.float64) for name in ("linf", "l2"))
    return Norms(linf, l2, len(chosen), len(units))


def _said(ledger: Ledger, unit: Unit) -> Iterator[dict[str, float]]:
    marker = ledger.marker(unit)
    for record in shards.records(ledger.read(marker), name=marker.object):
        yield json.loads(record["json"])
