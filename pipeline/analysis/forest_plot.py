"""Forest plot of gains: every attack compared with the base attack nearest in cost, with 95% intervals."""

import math
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from pipeline.analysis import drawing
from pipeline.analysis.paired_statistics import PooledComparison
from pipeline.analysis.report import budget
from pipeline.results.denominators import DENOMINATOR_LABELS, Denominator

_EQUAL_COST, _UNEQUAL_COST = drawing.COLOURS[:2]


def nearest_in_cost(rows: Sequence[PooledComparison]) -> list[PooledComparison]:
    """Each attack's comparison with the base attack nearest in cost, by ascending gain.

    The cost of images of another program is unknown: they are compared with the most expensive base attack.
    """
    nearest: dict[str, PooledComparison] = {}
    for row in rows:
        attack_id = row.ids[1]
        if attack_id not in nearest or _cost_difference(row) < _cost_difference(nearest[attack_id]):
            nearest[attack_id] = row
    return sorted(nearest.values(), key=lambda row: row.gain.rate or 0.0)


def draw(rows: Sequence[PooledComparison], *, base: str, denominator: Denominator) -> Figure:
    """A panel per budget, a line per attack: gain and 95% interval, in another colour where the two costs differ.

    Args:
        rows: Comparisons of one dataset, from one source or pooled over every source.
        base: Name of the base attack.
        denominator: Which images count.
    """
    budgets = sorted({(row.epsilon, row.norm) for row in rows})
    panels = {key: nearest_in_cost([row for row in rows if (row.epsilon, row.norm) == key]) for key in budgets}
    longest = max(len(_label(row.attack, 0)) + len(_label(row.base, 0)) for row in rows)
    heights = [1 + 0.21 * len(panel) for panel in panels.values()]
    figure = Figure(figsize=(max(6.5, 4 + 0.065 * longest), 1 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, ((epsilon, norm), panel) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, panel)
        axis.set_title(f"ε = {budget(epsilon, norm)}", fontsize=9)
    axes[-1].set_xlabel("gain in transfer success, percentage points; 95% interval over images", fontsize=8)
    figure.suptitle(_title(rows, base, denominator), fontsize=8)
    return figure


def _draw_panel(axis: Any, rows: Sequence[PooledComparison]) -> None:
    for y, row in enumerate(rows):
        gain, (low, high) = 100 * (row.gain.rate or 0.0), row.gain.interval or (math.nan, math.nan)
        colour = _EQUAL_COST if row.gradients == row.base_gradients else _UNEQUAL_COST
        axis.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=1.5)
        axis.plot([gain], [y], "o", color=colour, markersize=4.5)
    axis.set_yticks(range(len(rows)), [_label(row.attack, row.gradients) for row in rows], fontsize=8)
    right = axis.secondary_yaxis("right")
    right.set_yticks(range(len(rows)), [_label(row.base, row.base_gradients) for row in rows], fontsize=8)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.axvline(0, color="#888888", linewidth=0.8)
    axis.grid(axis="x", alpha=0.25)


def _title(rows: Sequence[PooledComparison], base: str, denominator: Denominator) -> str:
    source = rows[0].source or f"every source ({rows[0].models} pairs of source and target)"
    sizes = sorted({row.gain.n for row in rows})
    n = " to ".join(str(size) for size in sorted({sizes[0], sizes[-1]}))
    return (
        drawing.escape_dollars(f"gain of each attack (left) over {base} (right), from {source}\n")
        + f"n = {n} pairs of image and target; {DENOMINATOR_LABELS[denominator]}\n"
        + "gradients per image in brackets; blue: equal on both sides"
    )


def _cost_difference(row: PooledComparison) -> float:
    """Absolute logarithm of the ratio of costs; if the attack's cost is unknown, lowest for the most expensive base."""
    if row.gradients is None or row.base_gradients is None:
        return -(row.base_gradients or 0)
    return abs(math.log(max(row.gradients, 0.5) / max(row.base_gradients, 0.5)))


def _label(attack: str, gradients: int | None) -> str:
    """Name of an attack without its budget, which is the panel's title, and its cost."""
    short = re.sub(r"epsilon=[^,\]]*,?", "", attack).replace(",]", "]").removesuffix("[]")
    return drawing.escape_dollars(f"{short} ({'?' if gradients is None else gradients})")
