"""One attack over a grid of its settings: transfer and source success at every point, as a table and as one figure."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from matplotlib.figure import Figure

from pipeline.analysis import drawing
from pipeline.analysis.report import Report
from pipeline.attack.recipe import TRANSFORMS, VIEWS
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger, Unit
from pipeline.results.intervals import PooledRate
from pipeline.results.predictions import COUNTED, Denominator

Value = str | float | int
# What a figure has room for: along a panel, a line's colour, rows and columns of panels.
_MOST_AXES = 4
_NAMES = {part.__name__: name for name, part in {**VIEWS, **TRANSFORMS}.items()}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Point:
    """One attack of the grid, from one source.

    Attributes:
        dataset: Identity of the images.
        source: Name of the model attacked.
        attack: Name of the attack.
        settings: What tells it from the others: setting → value.
        source_id: Its identity.
        white_box: Success on the source itself, or on an ensemble's members, where they are among the targets.
        transfer: Success on all other targets together.
    """

    dataset: str
    source: str
    source_id: str
    attack: str
    settings: dict[str, Value]
    white_box: PooledRate
    transfer: PooledRate


def points(ledger: Ledger, report: Report, *, attack: str, denominator: Denominator = "target") -> list[Point]:
    """Every attack of a grid, with what tells them apart.

    Args:
        ledger: The store.
        report: Of the store.
        attack: The grid's name: `gnp+mi` for `gnp+mi[gnp.beta=0.4]` and its like.
        denominator: Which images count.

    Raises:
        RecipeError: The store holds no such grid.
    """
    settings = settings_of(ledger)
    rows = [row for row in report.success if row.attack.startswith(f"{attack}[") and row.attack_id in settings]
    named = {row.attack_id: settings[row.attack_id] for row in rows}
    varying = {
        name for one in named.values() for name in one if len({str(each.get(name)) for each in named.values()}) > 1
    }
    if not rows or not varying:
        raise RecipeError(
            f"attack {attack!r}: {ledger.storage.url} holds no grid of that name; gnp report names the attacks"
        )
    own, others = (
        {(row.dataset, row.source_id, row.attack_id): row.rates[denominator] for row in some}
        for some in (report.white_box, report.transfer)
    )
    return [
        Point(
            dataset=row.dataset,
            source=row.source,
            source_id=row.source_id,
            attack=row.attack,
            settings={name: value for name, value in named[row.attack_id].items() if name in varying},
            white_box=own.get(key, PooledRate()),
            transfer=others.get(key, PooledRate()),
        )
        for key, row in {(row.dataset, row.source_id, row.attack_id): row for row in rows}.items()
    ]


def axes(grid: Sequence[Point]) -> list[str]:
    """The settings that vary: those of views and transforms first, and of these the one with the most values."""
    counts = {name: len({str(point.settings.get(name)) for point in grid}) for name in grid[0].settings}
    return sorted(counts, key=lambda name: ("." not in name, -counts[name], name))


def draw(grid: Sequence[Point], *, denominator: Denominator) -> Figure:
    """The grid: success along the first setting, a colour for each value of the second, panels for the others.

    Args:
        grid: Points of one dataset and source.
        denominator: Which images are counted.

    Raises:
        RecipeError: More settings vary than a figure has room for.
    """
    names = axes(grid)
    if len(names) > _MOST_AXES:
        raise RecipeError(f"{len(names)} settings vary ({', '.join(names)}): a figure shows {_MOST_AXES}")
    along, colour, row, column = [*names, "", "", ""][:_MOST_AXES]
    rows, columns, colours, ticks = (_values(grid, name) for name in (row, column, colour, along))
    figure = Figure(figsize=(1.2 + 3.4 * len(columns), 1.2 + 2.5 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    for (i, down), (j, across) in itertools.product(enumerate(rows), enumerate(columns)):
        axis = panels[i][j]
        for k, shade in enumerate(colours):
            wanted = {row: down, column: across, colour: shade}
            line = [
                point
                for point in grid
                if all(point.settings.get(name, "") == it for name, it in wanted.items() if name)
            ]
            _draw_line(
                axis,
                sorted(line, key=lambda point: _order(point.settings[along])),
                along,
                _COLOURS[k % 7],
                f"{shade}",
                ticks=ticks,
            )
        axis.set_title(", ".join(f"{name} = {it}" for name, it in ((row, down), (column, across)) if name), fontsize=9)
        axis.set_xticks(range(len(ticks)), [str(value) for value in ticks])
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.25)
    for axis in panels[-1]:
        axis.set_xlabel(along)
    for line in panels:
        line[0].set_ylabel("success")
    handles, labels = panels[0][0].get_legend_handles_labels()
    title = (
        f"{colour}; solid: transfer, dotted: the source itself"
        if colour
        else "solid: transfer, dotted: the source itself"
    )
    figure.legend(
        handles,
        labels if colour else [""] * len(labels),
        title=title,
        loc="outside lower center",
        ncols=len(labels),
        framealpha=0,
    )
    sizes = sorted({(point.transfer.n, point.transfer.images) for point in grid})
    pairs, images = (" to ".join(str(n) for n in sorted({some[0], some[-1]})) for some in zip(*sizes, strict=True))
    name = drawing.plain(f"{grid[0].attack.partition('[')[0]} from {grid[0].source}")
    figure.suptitle(
        f"{name}; n = {pairs} pairs of image and target, of {images} images\n({COUNTED[denominator]}); bands: 95%, "
        "over images",
        fontsize=10,
    )
    return figure


def _draw_line(
    axis: Any, line: Sequence[Point], along: str, colour: str, label: str, *, ticks: Sequence[Value]
) -> None:
    where = [ticks.index(point.settings[along]) for point in line]  # evenly, for words and fractions stand there too
    bands = [point.transfer.interval or (math.nan, math.nan) for point in line]
    axis.plot(where, [_shown(point.transfer) for point in line], "o-", color=colour, label=label, markersize=4)
    axis.plot(where, [_shown(point.white_box) for point in line], ":", color=colour)
    axis.fill_between(where, [low for low, _ in bands], [high for _, high in bands], color=colour, alpha=0.12)


def _shown(rate: PooledRate) -> float:
    return math.nan if rate.rate is None else rate.rate


def _values(grid: Sequence[Point], name: str) -> list[Value]:
    """The values of a setting, in order; one empty one where there is no such setting."""
    return sorted({point.settings.get(name, "") for point in grid}, key=_order) if name else [""]


def _order(value: Value) -> tuple[float, str]:
    """Numbers and fractions by size, words after them."""
    try:
        return float(Fraction(str(value))), ""
    except ValueError:
        return math.inf, str(value)


def settings_of(ledger: Ledger) -> dict[str, dict[str, Value]]:
    """Identity of each attack → its settings, flat, as a recipe has them: `steps`, `gnp.beta`."""
    first: dict[str, Unit] = {unit.attack: unit for unit in ledger.units("adversarial")}
    return {marker.unit.attack: dict(_flat(marker.fact("attack"))) for marker in ledger.markers(first.values())}


def _flat(described: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Value]]:
    for name, value in described.items():
        if isinstance(value, list):
            for part in value:
                yield from _flat(part, f"{_NAMES[part['kind']]}.")
        # A step size of ε/T says nothing that ε and T do not.
        elif name not in ("name", "kind") and not (name == "step_size" and _is_default(described)):
            yield f"{before}{name}", value


def _is_default(described: Mapping[str, Any]) -> bool:
    return "steps" in described and Fraction(described["step_size"]) * described["steps"] == Fraction(
        described["epsilon"]
    )
