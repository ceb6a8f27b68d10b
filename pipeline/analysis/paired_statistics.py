"""Two attacks compared on the same images: gain, 95% interval, McNemar's test, cost.

Only images on which exactly one of the two attacks succeeds tell them apart (McNemar). What the attacks cost, in
gradients per image, stands beside every gain.
"""

import math
from dataclasses import dataclass, replace

from scipy.stats import binomtest, norm

from pipeline.results.intervals import CONFIDENCE, PooledGain, Rate


@dataclass(frozen=True)
class AttackPair:
    """An attack and the base attack that it is compared with, from one source at one budget.

    Attributes:
        dataset: Identity of the dataset.
        source: Name of the source; empty if pooled over every source of the store.
        epsilon: Budget of both attacks, on [0, 1].
        norm: Norm of the budget.
        attack: Name of the attack.
        base: Name of the base attack.
        gradients: Gradients per image that the attack takes, as counted; None for images of another program.
        base_gradients: Gradients per image that the base attack takes.
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
class TargetComparison(AttackPair):
    """Two attacks compared on one target, image by image.

    Attributes:
        target: Name of the target.
        both: Images on which both attacks succeed.
        only_attack: Images on which only the attack succeeds.
        only_base: Images on which only the base attack succeeds.
        n: Images that count.
        ids: Identities of source, attack, base attack and target, since several can have one name.
    """

    target: str
    both: int
    only_attack: int
    only_base: int
    n: int
    ids: tuple[str, str, str, str] = ("", "", "", "")

    @property
    def success(self) -> tuple[Rate, Rate]:
        """Success rates of the attack and of the base attack."""
        return Rate(self.both + self.only_attack, self.n), Rate(self.both + self.only_base, self.n)

    @property
    def gain(self) -> float | None:
        """Success rate of the attack minus that of the base attack; None if no image counts."""
        return (self.only_attack - self.only_base) / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of the gain: Wald's for paired proportions, with half an image added to each of the four cells.

        References:
            Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in
            Medicine 24 (2005).
        """
        if not self.n:
            return None
        n, only_attack, only_base = self.n + 2, self.only_attack + 0.5, self.only_base + 0.5
        middle = (only_attack - only_base) / n
        variance = only_attack + only_base - (only_attack - only_base) ** 2 / n
        half_width = norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(variance) / n
        return max(-1.0, float(middle - half_width)), min(1.0, float(middle + half_width))

    @property
    def p_value(self) -> float:
        """Two-sided p value of McNemar's exact test of equal success.

        References:
            McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12
            (1947).
        """
        discordant = self.only_attack + self.only_base
        return float(binomtest(self.only_attack, discordant, 0.5).pvalue) if discordant else 1.0

    def __add__(self, other: "TargetComparison") -> "TargetComparison":
        counts = {
            name: getattr(self, name) + getattr(other, name) for name in ("both", "only_attack", "only_base", "n")
        }
        return replace(self, **counts)


@dataclass(frozen=True)
class PooledComparison(AttackPair):
    """Two attacks compared on all targets that are not the source itself.

    Attributes:
        models: Number of pairs of source and target.
        gain: Success of the attack minus that of the base attack, over pairs of image and target.
        ids: Identities of source (empty if pooled over every source), attack and base attack.
    """

    models: int
    gain: PooledGain
    ids: tuple[str, str, str] = ("", "", "")

    def __add__(self, other: "PooledComparison") -> "PooledComparison":
        return replace(self, models=max(self.models, other.models), gain=self.gain + other.gain)


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a store's attacks with a base attack.

    Attributes:
        by_target: One entry per source, attack, base attack and target.
        pooled: One entry per source, attack and base attack; with several sources, also one per attack and base
            attack over every source.
    """

    by_target: list[TargetComparison]
    pooled: list[PooledComparison]
