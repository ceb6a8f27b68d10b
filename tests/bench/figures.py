"""Figures that the benchmarks measure."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Figure:
    """A measured figure.

    Attributes:
        what: Description.
        value: Value.
        unit: Unit of the value.
        spread: Minimum and maximum of several tries.
        wanted: Goal: the minimum, or if negative, the maximum; None without a goal.
    """

    what: str
    value: float
    unit: str
    spread: tuple[float, float] | None = None
    wanted: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the goal is met."""
        return self.wanted is None or (self.value >= self.wanted if self.wanted >= 0 else self.value <= -self.wanted)


def spread_of(what: str, values: Sequence[float], unit: str, wanted: float | None = None) -> Figure:
    """The median of several tries, with their minimum and maximum."""
    return Figure(what, statistics.median(values), unit, (min(values), max(values)), wanted)


def seconds(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def in_new_process(function: Callable[..., Any], *arguments: str) -> Any:
    """The result of a function of tests.bench in a new process; its arguments are text, its result is JSON."""
    module = "tests.bench.__main__" if function.__module__ == "__main__" else function.__module__
    name = function.__name__
    code = f"import json, sys; from {module} import {name}; print(json.dumps({name}(*sys.argv[1:])))"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])
