"""Figure of the curvature analysis: accuracy of the product and success of the attack, along the step length."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from matplotlib.figure import Figure

from pipeline.analysis.curvature import AttackSuccess, Product, ProductAccuracy, table

_COLOURS = {"float64": "#000000", "float32": "#0072B2", "tf32": "#009E73", "bfloat16": "#D55E00"}


def draw(accuracies: Sequence[ProductAccuracy], successes: Sequence[AttackSuccess], *, title: str) -> Figure:
    """A column per form: cosine to the exact product above, success below, a line per precision along r."""
    forms, rows = get_args(Product), table(accuracies, successes)
    figure = Figure(figsize=(3.2 * len(forms), 5.6), layout="constrained")
    panels = figure.subplots(2, len(forms), sharex=True, sharey="row", squeeze=False)
    for above, below, form in zip(*panels, forms, strict=True):
        for precision, colour in _COLOURS.items():
            _draw_cosines(above, accuracies, form, precision, colour)
            _draw_success(below, rows, form, precision, colour)
        for row in rows:
            if (row["form"], row["precision"]) == ("without", "float32") and row["success"] is not None:
                below.axhline(row["success"], color="#666666", linestyle=":", linewidth=1)
        above.set_title(form, fontsize=10)
        above.set_xscale("log")
        below.set_xlabel("r (L2)")
        below.set_ylim(0, 1)
        for axis in (above, below):
            axis.grid(alpha=0.25)
    panels[0][0].set_ylabel("cosine to the exact H·u")
    panels[1][0].set_ylabel("transfer (dotted: without)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)))
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_cosines(axis: Any, accuracies: Sequence[ProductAccuracy], form: str, precision: str, colour: str) -> None:
    shown = [row for row in accuracies if (row.form, row.precision) == (form, precision)]
    quartiles = [np.nanquantile(row.cosines, (0.25, 0.5, 0.75)) for row in shown]
    _draw_line(axis, [row.r for row in shown], quartiles, colour, precision)


def _draw_success(axis: Any, rows: Sequence[dict[str, Any]], form: str, precision: str, colour: str) -> None:
    shown = [row for row in rows if (row["form"], row["precision"]) == (form, precision) and row["interval"]]
    bounds = [(row["interval"][0], row["success"], row["interval"][1]) for row in shown]
    _draw_line(axis, [row["r"] for row in shown], bounds, colour, precision)


def _draw_line(axis: Any, radii: Sequence[float], bounds: Sequence[Any], colour: str, label: str) -> None:
    """A line through the middle of each (low, middle, high), and a band from low to high; nothing without points."""
    if radii:
        low, middle, high = zip(*bounds, strict=True)
        axis.plot(radii, middle, "o-", color=colour, label=label, markersize=3)
        axis.fill_between(radii, low, high, color=colour, alpha=0.12)
