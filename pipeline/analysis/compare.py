"""Attacks side by side on the same images: what one gains over another, and whether it could be chance.

Two attacks are compared image by image, from one source, at one budget, on one target: only images on which just one
of them succeeds tell them apart (McNemar). Then on all targets together. What a gain costs stands beside it: an attack
that takes two gradients a step is to be set beside the base with twice the steps as well, so every step count of the
base is compared.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm

from pipeline.ledger import Ledger, Unit
from pipeline.results.intervals import CONFIDENCE, PooledGain, Rate
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
class Contest:
    """One attack against another from one source at one budget.

    Attributes:
        dataset: Identity of the images.
        source: Name of the model attacked; empty where it is every one of the store.
        epsilon: Budget on [0, 1], of both.
        norm: Of the budget.
        attack: Name of the attack.
        base: Name of the other.
        gradients: How many an image costs by the attack, as counted; None of another program's images.
        base_gradients: By the base.
    """

    dataset: str
    source: str
    epsilon: float
    norm: str
    attack: str
    base: str
    gradients: int | None
    base_gradients: int | None


@dataclass(frozen=True)
class Comparison(Contest):
    """On one target, image by image.

    Attributes:
        target: Name of the model scored.
        both: Images on which both succeed.
        only_attack: Images on which just the attack does.
        only_base: Images on which just the base does.
        n: Images that are counted.
        ids: Identities of source, attack, base and target: names can be alike.
    """

    target: str
    both: int
    only_attack: int
    only_base: int
    n: int
    ids: tuple[str, str, str, str] = ("", "", "", "")

    @property
    def success(self) -> tuple[Rate, Rate]:
        """Of the attack and of the base."""
        return Rate(self.both + self.only_attack, self.n), Rate(self.both + self.only_base, self.n)

    @property
    def gain(self) -> float | None:
        """Success of the attack less that of the base, or None of no images."""
        return (self.only_attack - self.only_base) / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """A 95% interval of the gain: Wald's for pairs, with half an image added to each of the four cells.

        References:
            Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in
            Medicine 24 (2005).
        """
        if not self.n:
            return None
        n, one, other = self.n + 2, self.only_attack + 0.5, self.only_base + 0.5
        middle = (one - other) / n
        reach = norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(one + other - (one - other) ** 2 / n) / n
        return max(-1.0, float(middle - reach)), min(1.0, float(middle + reach))

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test, two-sided: that neither is better, as far as these images tell.

        References:
            McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12
            (1947).
        """
        apart = self.only_attack + self.only_base
        return float(binomtest(self.only_attack, apart, 0.5).pvalue) if apart else 1.0

    def __add__(self, other: "Comparison") -> "Comparison":
        counts = {
            name: getattr(self, name) + getattr(other, name) for name in ("both", "only_attack", "only_base", "n")
        }
        return replace(self, **counts)


@dataclass(frozen=True)
class Together(Contest):
    """On all targets but the source itself.

    Attributes:
        models: How many pairs of source and target.
        gain: Success of the attack less that of the base.
        ids: Identities of source (or empty), attack and base.
    """

    models: int
    gain: PooledGain
    ids: tuple[str, str, str] = ("", "", "")

    def __add__(self, other: "Together") -> "Together":
        return replace(self, models=max(self.models, other.models), gain=self.gain + other.gain)


@dataclass(frozen=True)
class Compared:
    """A store's attacks against a base.

    Attributes:
        each: By source, attack, base and target.
        together: By source, attack and base; and, where there are several sources, by attack and base alone.
    """

    each: list[Comparison]
    together: list[Together]


def compare(ledger: Ledger, *, base: str, denominator: Denominator = "target") -> Compared:
    """Every attack of a store against the base attack of the same source and budget, on every target.

    Args:
        ledger: The store.
        base: Name of the attack that the others are held against; of a grid, every point of it.
        denominator: Which images count.

    Raises:
        IntegrityError: A result file is damaged, or two do not speak of the same images.
        StorageError: The store failed.
    """
    clean = set(ledger.units("clean"))
    ready = [unit for unit in ledger.units("transfer") if replace(unit, source="", attack="") in clean]
    joint, attacked, costs = joint_targets(clean), by_part(ready), _costs(ledger)
    sources, targets = networks(ledger)
    each: dict[tuple[str, ...], Comparison] = {}
    together: dict[tuple[str, ...], Together] = {}
    for place, units in sorted(by_part(clean).items()):
        own = {found.unit.target: found for found in predictions(ledger, units)}
        if not own:
            continue
        everywhere = all_correct(own, joint[place[0]])
        pairs = list(_pairs(ledger, attacked[place], own, everywhere, denominator, base, costs))
        for pair in pairs:
            key = (*pair.one.scope.split("/"), pair.other.attack)
            each[key] = each[key] + pair.counts if key in each else pair.counts
        others = [
            pair for pair in pairs if not any(is_itself(unit, sources, targets) for unit in (pair.one, pair.other))
        ]
        for key, some in _alike(others):
            sums = _together(some, source=key[1])
            together[key] = together[key] + sums if key in together else sums
    several = len({key[1] for key in together if key[1]}) > 1
    return Compared(list(each.values()), [sums for key, sums in sorted(together.items()) if key[1] or several])


def to_json(compared: Compared) -> dict[str, Any]:
    """Comparisons as JSON values."""
    return {
        "confidence": CONFIDENCE,
        "each": [
            {**asdict(row), "gain": row.gain, "interval": row.interval, "p_value": row.p_value} for row in compared.each
        ],
        "together": [
            {**asdict(row), "gain": {**asdict(row.gain), "rate": row.gain.rate, "interval": row.gain.interval}}
            for row in compared.together
        ],
    }


@dataclass(frozen=True)
class _Pair:
    """Two attacks on one part: the units of both, what is counted, and image by image (rows,) where which succeeds."""

    one: Unit
    other: Unit
    counts: Comparison
    gained: np.ndarray
    counted: np.ndarray


def _alike(pairs: Iterable[_Pair]) -> Iterator[tuple[tuple[str, ...], list[_Pair]]]:
    """Pairs that differ in the target alone; then those that differ in source and target alone."""
    found: dict[tuple[str, ...], list[_Pair]] = defaultdict(list)
    for pair in pairs:
        for source in (pair.one.source, ""):
            found[pair.one.dataset, source, pair.one.attack, pair.other.attack].append(pair)
    return iter(found.items())


def _together(pairs: list[_Pair], *, source: str) -> Together:
    first = pairs[0].counts
    gained, counted = (
        np.stack(columns).sum(axis=0) for columns in zip(*((each.gained, each.counted) for each in pairs), strict=True)
    )
    return Together(
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


def _pairs(
    ledger: Ledger,
    units: list[Unit],
    clean: dict[str, Predictions],
    everywhere: np.ndarray,
    denominator: Denominator,
    base: str,
    costs: dict[tuple[str, str], int | None],
) -> Iterator[_Pair]:
    """What one part adds."""
    alike: dict[tuple[Any, ...], list[tuple[Predictions, np.ndarray]]] = defaultdict(list)
    for each in predictions(ledger, units):
        counted = each.counted(clean[each.unit.target], everywhere)[denominator]
        alike[each.constant("source"), each.unit.target, each.constant("epsilon"), each.constant("norm")].append(
            (each, counted)
        )
    for (_, _, epsilon, ball), attacks in alike.items():
        for one, counted in attacks:
            for other, _ in attacks:
                if one is other or not _is_of(other.constant("attack"), base) or _is_of(one.constant("attack"), base):
                    continue
                cost, base_cost = (costs.get((each.unit.source, each.unit.attack)) for each in (one, other))
                ours = None not in (cost, base_cost)
                if ours and one.unit.source != other.unit.source:
                    continue  # two models of one name; another program's source is what its user says
                if not one.table.column("target_class").equals(other.table.column("target_class")):
                    continue  # what one wants is no success of the other
                mine, theirs = one.fooled & counted, other.fooled & counted
                counts = Comparison(
                    dataset=one.unit.dataset,
                    source=one.constant("source"),
                    epsilon=epsilon,
                    norm=ball,
                    attack=one.constant("attack"),
                    base=other.constant("attack"),
                    gradients=cost,
                    base_gradients=base_cost,
                    target=one.constant("target"),
                    both=int((mine & theirs).sum()),
                    only_attack=int((mine & ~theirs).sum()),
                    only_base=int((theirs & ~mine).sum()),
                    n=int(counted.sum()),
                    ids=(one.unit.source, one.unit.attack, other.unit.attack, one.unit.target),
                )
                yield _Pair(one.unit, other.unit, counts, mine.astype(np.int64) - theirs, counted)


def _is_of(attack: str, base: str) -> bool:
    """Whether an attack is the base, or a point of its grid: `mi` or `mi[steps=20]`."""
    return attack == base or attack.startswith(f"{base}[")


def _costs(ledger: Ledger) -> dict[tuple[str, str], int | None]:
    """Identities of source and attack (an ensemble costs more) → gradients an image, off one marker of each."""
    first = {(unit.source, unit.attack): unit for unit in ledger.units("adversarial")}
    return {
        (marker.unit.source, marker.unit.attack): marker.fact("gradients") for marker in ledger.markers(first.values())
    }
