"""Comparison of a store's attacks with a base attack, image by image.

Attacks are compared from one source, at one budget, on one target, and on all targets that are not the source. An
attack with two gradients per step should be compared with twice the steps of the base attack as well, so every step
count of the base attack in the store is compared.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.analysis.paired_statistics import Comparisons, PooledComparison, TargetComparison
from pipeline.ledger import Ledger, Unit
from pipeline.results.denominators import Denominator, all_correct, denominator_masks, joint_targets
from pipeline.results.intervals import PooledGain
from pipeline.results.predictions import (
    StoredPredictions,
    group_by_part,
    is_white_box,
    read_model_identities,
    read_predictions,
)


def compare(ledger: Ledger, *, base: str, denominator: Denominator = "target") -> Comparisons:
    """Compares every attack of a store with the base attack of the same source and budget, on every target.

    Args:
        ledger: The store.
        base: Name of the base attack; if it is a grid, attacks are compared with every point of it.
        denominator: Which images count.

    Raises:
        IntegrityError: A result file is damaged, or two result files of a part hold different images.
        StorageError: The store failed.
    """
    clean = set(ledger.list_units("clean"))
    ready = [unit for unit in ledger.list_units("transfer") if replace(unit, source="", attack="") in clean]
    joint = joint_targets(clean)
    attacked = group_by_part(ready)
    gradients = gradients_per_image(ledger)
    sources, targets = read_model_identities(ledger)
    by_target: dict[tuple[str, ...], TargetComparison] = {}
    pooled: dict[tuple[str, ...], PooledComparison] = {}
    for (dataset, part), clean_units in sorted(group_by_part(clean).items()):
        tables = {table.unit.target: table for table in read_predictions(ledger, clean_units)}
        if not tables:
            continue
        joint_correct = all_correct(tables, joint[dataset])
        attacks = [
            _CountedPredictions(table, denominator_masks(table, tables[table.unit.target], joint_correct)[denominator])
            for table in read_predictions(ledger, attacked[dataset, part])
        ]
        pairs = [_part_comparison(attack, other, gradients) for attack, other in _pairs(attacks, base, gradients)]
        for pair in pairs:
            key = (*pair.attack.scope.split("/"), pair.base.attack)
            by_target[key] = by_target[key] + pair.counts if key in by_target else pair.counts
        transfer = [
            pair for pair in pairs if not any(is_white_box(unit, sources, targets) for unit in (pair.attack, pair.base))
        ]
        for key, group in _group_by_source(transfer).items():
            addend = _pool(group, source=key[1])
            pooled[key] = pooled[key] + addend if key in pooled else addend
    several = len({key[1] for key in pooled if key[1]}) > 1
    return Comparisons(list(by_target.values()), [row for key, row in sorted(pooled.items()) if key[1] or several])


def gradients_per_image(ledger: Ledger) -> dict[tuple[str, str], int | None]:
    """Identities of source and attack → gradients per image, from one marker of each pair.

    The source matters: on an ensemble the same attack takes more gradients.
    """
    first = {(unit.source, unit.attack): unit for unit in ledger.list_units("adversarial")}
    return {
        (marker.unit.source, marker.unit.attack): marker.fact("gradients")
        for marker in ledger.read_markers(first.values())
    }


@dataclass(frozen=True)
class _CountedPredictions:
    """Transfer predictions of one part, and which of its images count, (rows,) bool."""

    table: StoredPredictions
    counted: np.ndarray


@dataclass(frozen=True)
class _PartComparison:
    """Two attacks compared on one part and one target.

    Attributes:
        attack: Unit of the attack's predictions.
        base: Unit of the base attack's predictions.
        counts: Numbers of images.
        gained: +1 where only the attack succeeds, −1 where only the base attack does, else 0; (rows,) int64.
        counted: Which images count, (rows,) bool.
    """

    attack: Unit
    base: Unit
    counts: TargetComparison
    gained: np.ndarray
    counted: np.ndarray


def _pairs(
    attacks: Iterable[_CountedPredictions], base: str, gradients: dict[tuple[str, str], int | None]
) -> Iterator[tuple[_CountedPredictions, _CountedPredictions]]:
    """Every attack with every comparable base attack: same source, target, budget and target classes."""
    groups: dict[tuple[Any, ...], list[_CountedPredictions]] = defaultdict(list)
    for attack in attacks:
        constant = attack.table.constant
        key = (constant("source"), attack.table.unit.target, constant("epsilon"), constant("norm"))
        groups[key].append(attack)
    for group in groups.values():
        bases = [attack for attack in group if _is_base(attack.table.constant("attack"), base)]
        for attack in group:
            if not _is_base(attack.table.constant("attack"), base):
                yield from ((attack, other) for other in bases if _comparable(attack.table, other.table, gradients))


def _comparable(
    attack: StoredPredictions, base: StoredPredictions, gradients: dict[tuple[str, str], int | None]
) -> bool:
    """Whether two attacks on a source of one name attack the same model, and want the same classes."""
    attack_source, base_source = attack.unit.source, base.unit.source
    # The source of another program's images (whose gradients are unknown) is known by its name only.
    external = None in (gradients.get((table.unit.source, table.unit.attack)) for table in (attack, base))
    if not external and attack_source != base_source:
        return False
    return bool(attack.table.column("target_class").equals(base.table.column("target_class")))


def _part_comparison(
    attack: _CountedPredictions, base: _CountedPredictions, gradients: dict[tuple[str, str], int | None]
) -> _PartComparison:
    table, base_table, counted = attack.table, base.table, attack.counted
    fooled, base_fooled = table.fooled & counted, base_table.fooled & counted
    counts = TargetComparison(
        dataset=table.unit.dataset,
        source=table.constant("source"),
        epsilon=table.constant("epsilon"),
        norm=table.constant("norm"),
        attack=table.constant("attack"),
        base=base_table.constant("attack"),
        gradients=gradients.get((table.unit.source, table.unit.attack)),
        base_gradients=gradients.get((base_table.unit.source, base_table.unit.attack)),
        target=table.constant("target"),
        both=int((fooled & base_fooled).sum()),
        only_attack=int((fooled & ~base_fooled).sum()),
        only_base=int((base_fooled & ~fooled).sum()),
        n=int(counted.sum()),
        ids=(table.unit.source, table.unit.attack, base_table.unit.attack, table.unit.target),
    )
    return _PartComparison(table.unit, base_table.unit, counts, fooled.astype(np.int64) - base_fooled, counted)


def _group_by_source(pairs: Iterable[_PartComparison]) -> dict[tuple[str, ...], list[_PartComparison]]:
    """Comparisons by dataset, source, attack and base attack; and again with an empty source: over every source."""
    groups: dict[tuple[str, ...], list[_PartComparison]] = defaultdict(list)
    for pair in pairs:
        for source in (pair.attack.source, ""):
            groups[pair.attack.dataset, source, pair.attack.attack, pair.base.attack].append(pair)
    return groups


def _pool(pairs: list[_PartComparison], *, source: str) -> PooledComparison:
    """Comparisons of two attacks on one part, pooled over targets."""
    first = pairs[0].counts
    gained = np.stack([pair.gained for pair in pairs]).sum(axis=0)
    counted = np.stack([pair.counted for pair in pairs]).sum(axis=0)
    return PooledComparison(
        dataset=first.dataset,
        source=first.source if source else "",
        epsilon=first.epsilon,
        norm=first.norm,
        attack=first.attack,
        base=first.base,
        gradients=first.gradients,
        base_gradients=first.base_gradients,
        models=len(pairs),
        gain=PooledGain.over(gained, counted),
        ids=(source, *first.ids[1:3]),
    )


def _is_base(attack: str, base: str) -> bool:
    """Whether an attack is the base attack, or a point of its grid: `mi` or `mi[steps=20]`."""
    return attack == base or attack.startswith(f"{base}[")
