"""Figure of an ablation: success over a grid of settings."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from matplotlib.figure import Figure

from pipeline.analysis import drawing
from pipeline.analysis.ablation import Point, SettingValue, varying_settings
from pipeline.errors import RecipeError
from pipeline.results.denominators import DENOMINATOR_LABELS, Denominator
from pipeline.results.intervals import PooledRate

# One along the horizontal axis, one as colours, one as rows and one as columns of panels.
_MAX_SETTINGS = 4
_COLOURS = (*drawing.COLOURS, "#000000")


def draw(grid: Sequence[Point], *, denominator: Denominator) -> Figure:
    """Success along the first varying setting, with a colour per value of the second, and panels for two more.

    Args:
        grid: Points of one dataset and source.
        denominator: Which images count.

    Raises:
        RecipeError: More settings vary than a figure has room for.
    """
    names = varying_settings(grid)
    if len(names) > _MAX_SETTINGS:
        raise RecipeError(f"{len(names)} settings vary ({', '.join(names)}): a figure shows at most {_MAX_SETTINGS}")
    x_name, colour_name, row_name, column_name = [*names, "", "", ""][:_MAX_SETTINGS]
    rows, columns, x_values = (_values(grid, name) for name in (row_name, column_name, x_name))
    figure = Figure(figsize=(1.2 + 3.4 * len(columns), 1.2 + 2.5 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        axis = panels[i][j]
        for k, value in enumerate(_values(grid, colour_name)):
            line = _select(grid, {row_name: row, column_name: column, colour_name: value})
            _draw_line(axis, line, x_name, _COLOURS[k % len(_COLOURS)], f"{value}", x_values=x_values)
        settings = [(name, value) for name, value in ((row_name, row), (column_name, column)) if name]
        axis.set_title(", ".join(f"{name} = {value}" for name, value in settings), fontsize=9)
        axis.set_xticks(range(len(x_values)), [str(value) for value in x_values])
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.25)
    for axis in panels[-1]:
        axis.set_xlabel(x_name)
    for axes in panels:
        axes[0].set_ylabel("success")
    _add_legend(figure, panels[0][0], colour_name)
    figure.suptitle(_title(grid, denominator), fontsize=10)
    return figure


def _draw_line(
    axis: Any, points: Sequence[Point], x_name: str, colour: str, label: str, *, x_values: Sequence[SettingValue]
) -> None:
    points = sorted(points, key=lambda point: _sort_key(point.settings[x_name]))
    x = [x_values.index(point.settings[x_name]) for point in points]  # evenly spaced: values can be words or fractions
    bands = [point.transfer.interval or (math.nan, math.nan) for point in points]
    axis.plot(x, [_rate_or_nan(point.transfer) for point in points], "o-", color=colour, label=label, markersize=4)
    axis.plot(x, [_rate_or_nan(point.white_box) for point in points], ":", color=colour)
    axis.fill_between(x, [low for low, _ in bands], [high for _, high in bands], color=colour, alpha=0.12)


def _add_legend(figure: Figure, axis: Any, colour_name: str) -> None:
    handles, labels = axis.get_legend_handles_labels()
    lines = "solid: transfer, dotted: the source itself"
    figure.legend(
        handles,
        labels if colour_name else [""] * len(labels),
        title=f"{colour_name}; {lines}" if colour_name else lines,
        loc="outside lower center",
        ncols=len(labels),
        framealpha=0,
    )


def _title(grid: Sequence[Point], denominator: Denominator) -> str:
    sizes = sorted({(point.transfer.n, point.transfer.images) for point in grid})
    pairs, images = (
        " to ".join(str(n) for n in sorted({counts[0], counts[-1]})) for counts in zip(*sizes, strict=True)
    )
    name = drawing.escape_dollars(f"{grid[0].attack.partition('[')[0]} from {grid[0].source}")
    return (
        f"{name}; n = {pairs} pairs of image and target, of {images} images\n({DENOMINATOR_LABELS[denominator]}); "
        "bands: 95% intervals over images"
    )


def _select(grid: Sequence[Point], settings: dict[str, SettingValue]) -> list[Point]:
    """The points with these settings; an empty name is ignored."""
    return [
        point
        for point in grid
        if all(point.settings.get(name, "") == value for name, value in settings.items() if name)
    ]


def _values(grid: Sequence[Point], name: str) -> list[SettingValue]:
    """The values of a setting in order; one empty value for an empty name."""
    return sorted({point.settings.get(name, "") for point in grid}, key=_sort_key) if name else [""]


def _sort_key(value: SettingValue) -> tuple[float, str]:
    """Numbers and fractions by size, words after them."""
    try:
        return float(Fraction(str(value))), ""
    except ValueError:
        return math.inf, str(value)


def _rate_or_nan(rate: PooledRate) -> float:
    return math.nan if rate.rate is None else rate.rate
