"""What a benchmark found."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Something measured.

    Attributes:
        what: Of what.
        value: How much.
        unit: Of what unit.
        spread: The least and the most of several tries.
        wanted: The least, or with a minus the most, that is aimed at; None where nothing is.
    """

    what: str
    value: float
    unit: str
    spread: tuple[float, float] | None = None
    wanted: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the bar does."""
        return self.wanted is None or (self.value >= self.wanted if self.wanted >= 0 else self.value <= -self.wanted)


def spread_of(what: str, values: Sequence[float], unit: str, wanted: float | None = None) -> Figure:
    """The median of several tries."""
    return Figure(what, statistics.median(values), unit, (min(values), max(values)), wanted)


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
