"""Confidence intervals: rates with their denominators and 95% intervals, over images and over pairs of image and model.

Models tend to err on the same images, so pairs of image and model are not independent. Where several models are counted
together, the interval is taken over images.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """A count over a denominator.

    Attributes:
        count: The numerator.
        n: The denominator.
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
        from scipy.stats import binomtest  # half a second, which commands that need no interval do not wait

        interval = binomtest(self.count, self.n).proportion_ci(CONFIDENCE, method="wilson")
        return float(interval.low), float(interval.high)

    def __add__(self, other: "Rate") -> "Rate":
        return Rate(self.count + other.count, self.n + other.n)


@dataclass(frozen=True)
class Pooled:
    """A count over pairs of image and model.

    Attributes:
        count: Pairs counted; for a gain, pairs won minus pairs lost.
        n: All pairs: the denominator.
        images: Images in these pairs.
        squares: Sums over images of count², count·n and n².
    """

    count: int = 0
    n: int = 0
    images: int = 0
    squares: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def over(cls, counts: np.ndarray, pairs: np.ndarray) -> Self:
        """Sums over images.

        Args:
            counts: Pairs counted of each image, (images,).
            pairs: All pairs of each image, (images,).
        """
        counts = counts.astype(np.int64)
        pairs = pairs.astype(np.int64)
        squares = int((counts**2).sum()), int((counts * pairs).sum()), int((pairs**2).sum())
        return cls(int(counts.sum()), int(pairs.sum()), int((pairs > 0).sum()), squares)

    @property
    def rate(self) -> float | None:
        """count/n, or None over an empty denominator."""
        return self.count / self.n if self.n else None

    def __add__(self, other: Self) -> Self:
        first, second, third = map(sum, zip(self.squares, other.squares, strict=True))
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("count", "n", "images")}
        return replace(self, **sums, squares=(first, second, third))

    def _half_width(self, rate: float, added_variance: float, n: float, freedom: int) -> float:
        """Half the width of an interval: the linearised variance is the sum over images of (count − rate·n)² over n².

        `added_variance` and `n` are that sum's addition and the denominator, with the images that the interval adds.
        """
        from scipy.stats import t  # as above

        counts, products, pairs = self.squares
        spread = counts - 2 * rate * products + rate**2 * pairs + added_variance
        return float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(spread) / n


class PooledRate(Pooled):
    """Success over pairs of image and model."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """A 95% interval, by the linearised variance of a ratio of sums over images, four images added to them.

        Of the four added images, two are successes on every model and two on none. For one model this is Agresti and
        Coull's interval, except for the use of t. Images on which all models err alike do not count as several.

        References:
            Cochran, "Sampling Techniques" (1977), section 6.3: the ratio estimate.
            Agresti and Coull, "Approximate is better than 'exact' for interval estimation of binomial proportions", The
            American Statistician 52 (1998).
        """
        if not self.n:
            return None
        models = self.n / self.images
        n = self.n + 4 * models
        center = (self.count + 2 * models) / n
        added_variance = models**2 * (2 * (1 - center) ** 2 + 2 * center**2)
        half_width = self._half_width(center, added_variance, n, self.images + 3)
        return max(0.0, center - half_width), min(1.0, center + half_width)


class PooledGain(Pooled):
    """The gain of one attack over another, over pairs of image and model."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """A 95% interval, by the linearised variance of a ratio of sums over images, two images added to them.

        For one model it is the interval of Agresti and Min for paired proportions, except for the use of t.

        References:
            Cochran, "Sampling Techniques" (1977), section 6.3: the ratio estimate.
        """
        if not self.n:
            return None
        models = self.n / self.images
        n = self.n + 2 * self.n / self.images
        center = self.count / n
        half_width = self._half_width(center, models**2 * (1 + 2 * center**2), n, self.images + 1)
        return max(-1.0, center - half_width), min(1.0, center + half_width)
