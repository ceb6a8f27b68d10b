"""Rates with their denominators and 95% intervals: over images, and over images and models together.

Whom one model errs on, another often does too: pairs of image and model are no sample of their size. Where several
models are counted together, the interval is taken over images.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.stats import binomtest, t

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
class Pooled:
    """A count over pairs of image and model.

    Attributes:
        count: How many pairs; of a gain, those won less those lost.
        n: Of how many pairs.
        images: Of how many images these are.
        squares: Sums over images of count², count·n and n².
    """

    count: int = 0
    n: int = 0
    images: int = 0
    squares: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def over(cls, counts: np.ndarray, counted: np.ndarray) -> Self:
        """The sums of (images,) counts and the pairs that they are out of, ints."""
        counts, counted = counts.astype(np.int64), counted.astype(np.int64)
        squares = int((counts**2).sum()), int((counts * counted).sum()), int((counted**2).sum())
        return cls(int(counts.sum()), int(counted.sum()), int((counted > 0).sum()), squares)

    @property
    def rate(self) -> float | None:
        """count/n, or None over an empty denominator."""
        return self.count / self.n if self.n else None

    def __add__(self, other: Self) -> Self:
        first, second, third = (one + another for one, another in zip(self.squares, other.squares, strict=True))
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("count", "n", "images")}
        return replace(self, **sums, squares=(first, second, third))

    def _reach(self, rate: float, more: float, n: float, freedom: int) -> float:
        """Half the width of an interval: the linearised variance is the sum over images of (count − rate·n)² over n².

        `more` and `n` are that sum's, and the denominator's, with what is added to the images.
        """
        counts, both, counted = self.squares
        spread = counts - 2 * rate * both + rate**2 * counted + more
        return float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(spread) / n


class PooledRate(Pooled):
    """Success over pairs of image and model."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """A 95% interval, by the linearised variance of a ratio of sums over images, four images added to them.

        Two of these succeed on every model and two on none: of one model it is Agresti and Coull's, but for the use of
        t, and few images on which all models err alike do not pass for many.

        References:
            Cochran, "Sampling Techniques" (1977), section 6.3: the ratio estimate.
            Agresti and Coull, "Approximate is better than 'exact' for interval estimation of binomial proportions", The
            American Statistician 52 (1998).
        """
        if not self.n:
            return None
        each = self.n / self.images
        n = self.n + 4 * each
        middle = (self.count + 2 * each) / n
        reach = self._reach(middle, each**2 * (2 * (1 - middle) ** 2 + 2 * middle**2), n, self.images + 3)
        return max(0.0, middle - reach), min(1.0, middle + reach)


class PooledGain(Pooled):
    """What one attack gains over another, over pairs of image and model."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """A 95% interval, by the linearised variance of a ratio of sums over images, two images added to them.

        Of one model it is that of Agresti and Min for paired proportions, but for the use of t.

        References:
            Cochran, "Sampling Techniques" (1977), section 6.3: the ratio estimate.
        """
        if not self.n:
            return None
        each, n = self.n / self.images, self.n + 2 * self.n / self.images
        middle = self.count / n
        reach = self._reach(middle, each**2 * (1 + 2 * middle**2), n, self.images + 1)
        return max(-1.0, middle - reach), min(1.0, middle + reach)
