"""Gains as a picture: each attack beside the base that costs about as much, with intervals, a panel a budget."""

import math
import re
from collections.abc import Sequence

from matplotlib.figure import Figure

from pipeline.analysis import drawing
from pipeline.analysis.compare import Together
from pipeline.analysis.report import budget
from pipeline.results.predictions import COUNTED, Denominator

_EQUAL, _UNEQUAL = "#0072B2", "#D55E00"


def beside(rows: Sequence[Together]) -> list[Together]:
    """Of each attack the comparison with the base nearest in cost, the weakest gain first.

    What another program made costs nobody knows how much, and is set beside the costliest base.
    """
    found: dict[str, Together] = {}
    for row in rows:
        attack = row.ids[1]
        if attack not in found or _apart(row) < _apart(found[attack]):
            found[attack] = row
    return sorted(found.values(), key=lambda row: row.gain.rate or 0.0)


def draw(rows: Sequence[Together], *, base: str, denominator: Denominator) -> Figure:
    """A panel a budget, a line an attack, its gain and 95% interval; in another colour where costs differ.

    Args:
        rows: Of one dataset, from one source or from all together.
        base: What they were held against.
        denominator: Which images are counted.
    """
    budgets = sorted({(row.epsilon, row.norm) for row in rows})
    panels = {at: beside([row for row in rows if (row.epsilon, row.norm) == at]) for at in budgets}
    longest = max(len(_label(row.attack, 0)) + len(_label(row.base, 0)) for row in rows)
    height = sum(1 + 0.21 * len(each) for each in panels.values())
    figure = Figure(figsize=(max(6.5, 4 + 0.065 * longest), 1 + height), layout="constrained")
    ratios = [1 + 0.21 * len(each) for each in panels.values()]
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": ratios})[:, 0]
    for axis, ((epsilon, norm), some) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(some):
            gain, (low, high) = 100 * (row.gain.rate or 0.0), row.gain.interval or (math.nan, math.nan)
            colour = _EQUAL if row.gradients == row.base_gradients else _UNEQUAL
            axis.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=1.5)
            axis.plot([gain], [place], "o", color=colour, markersize=4.5)
        axis.set_yticks(range(len(some)), [_label(row.attack, row.gradients) for row in some], fontsize=8)
        right = axis.secondary_yaxis("right")
        right.set_yticks(range(len(some)), [_label(row.base, row.base_gradients) for row in some], fontsize=8)
        axis.set_ylim(-0.6, len(some) - 0.4)
        axis.set_title(f"ε = {budget(epsilon, norm)}", fontsize=9)
        axis.axvline(0, color="#888888", linewidth=0.8)
        axis.grid(axis="x", alpha=0.25)
    axes[-1].set_xlabel("points of transfer success gained, 95% interval over images", fontsize=8)
    first = rows[0]
    source = first.source or f"every source ({first.models} source–target pairs)"
    sizes = sorted({row.gain.n for row in rows})
    size = f"n = {' to '.join(str(n) for n in sorted({sizes[0], sizes[-1]}))}"
    figure.suptitle(
        drawing.plain(f"what attacks (left) gain over {base} (right), from {source}\n")
        + f"{size}, {COUNTED[denominator]}, of each target\n"
        "gradients an image in brackets, blue: as many on both sides",
        fontsize=8,
    )
    return figure


def _apart(row: Together) -> float:
    """How far costs lie apart, as a ratio's logarithm."""
    if row.gradients is None or row.base_gradients is None:
        return -(row.base_gradients or 0)
    return abs(math.log(max(row.gradients, 0.5) / max(row.base_gradients, 0.5)))


def _label(attack: str, gradients: int | None) -> str:
    """A name without the budget, which stands above, and the cost."""
    short = re.sub(r"epsilon=[^,\]]*,?", "", attack).replace(",]", "]").removesuffix("[]")
    return drawing.plain(f"{short} ({'?' if gradients is None else gradients})")
