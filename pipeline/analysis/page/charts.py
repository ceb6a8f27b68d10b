"""The page's figures. Colours stand out from light and from dark, and for those who see few of them (Okabe and Ito)."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.analysis import drawing
from pipeline.analysis.ablation import Value
from pipeline.analysis.page.details import Norms
from pipeline.analysis.report import Overall, budget
from pipeline.attack.ball import BallNorm
from pipeline.results.intervals import PooledRate
from pipeline.results.predictions import COUNTED, Denominator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
# Of a grid only so many lines are drawn, the strongest.
_MOST_LINES = 7

# Name → points along a setting.
Curves = dict[str, list[tuple[float, Overall]]]


def curves(
    rows: Sequence[Overall], settings: Mapping[str, Mapping[str, Value]], *, along: str, norm: BallNorm
) -> Curves:
    """Attacks that differ in one setting alone, as curves along it; the strongest `_MOST_LINES` of them.

    Args:
        rows: Of one dataset and source.
        settings: Identity of each attack → its settings.
        along: `epsilon` or `steps`.
        norm: Of the budget: one of the two is no curve with the other.
    """
    found: dict[tuple[tuple[str, str], ...], list[tuple[float, Overall]]] = {}
    for row in rows:
        own = settings.get(row.attack_id, {})
        if along not in own or own.get("norm", "linf") != norm:
            continue
        rest = {name: str(value) for name, value in own.items() if name not in (along, "norm")}
        kind = (("attack", row.attack.partition("[")[0]), *sorted(rest.items()))
        found.setdefault(kind, []).append((float(Fraction(str(own[along]))), row))
    several = {
        kind: sorted(points, key=lambda point: point[0]) for kind, points in found.items() if len(dict(points)) > 1
    }
    told = [dict(kind) for kind in several]
    varying = {name for kind in told for name in kind if len({kind.get(name) for kind in told}) > 1} - {"attack"}
    named = {
        ", ".join([dict(kind)["attack"], *(f"{name} = {value}" for name, value in kind if name in varying)]): points
        for kind, points in several.items()
    }
    strongest = sorted(named, key=lambda name: -max(_rate(row.rates["all"]) for _, row in named[name]))
    return {name: named[name] for name in strongest[:_MOST_LINES]}


def draw_curves(lines: Curves, *, label: str, scale: float, denominator: Denominator) -> Figure:
    """Success on all targets but the source along a setting, with 95% bands."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axis = figure.subplots()
    for colour, (name, points) in zip(COLOURS, lines.items(), strict=False):
        where, rates = [scale * x for x, _ in points], [row.rates[denominator] for _, row in points]
        axis.plot(
            where, [100 * _rate(rate) for rate in rates], "o-", color=colour, label=drawing.plain(name), markersize=4
        )
        low, high = zip(*(rate.interval or (math.nan, math.nan) for rate in rates), strict=True)
        axis.fill_between(where, 100 * np.array(low), 100 * np.array(high), color=colour, alpha=0.15)
    axis.set_xlabel(label)
    axis.set_ylabel(f"success, % of {COUNTED[denominator]}", fontsize=8)
    axis.set_ylim(0, 100)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, framealpha=0)
    return figure


def draw_classes(by_class: Mapping[int, PooledRate]) -> Figure:
    """How success is spread over classes: each class a point, the least successful first."""
    rates = sorted(100 * rate.rate for rate in by_class.values() if rate.rate is not None)
    figure = Figure(figsize=(7.5, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(1, len(rates) + 1), rates, "o", color=COLOURS[0], markersize=3)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(f"{len(rates)} classes, from the least to the most successful")
    axis.set_ylabel("success, %")
    axis.set_ylim(-3, 103)
    axis.grid(alpha=0.25)
    return figure


def draw_norms(norms: Mapping[str, Norms], *, epsilon: float, norm: str) -> Figure:
    """How far adversarial images lie from their originals: a line an attack, L∞ on the left and L2 on the right."""
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    sides = (("linf", 255, "L∞, in 1/255"), ("l2", 1, "L2"))
    for axis, (which, scale, unit) in zip(figure.subplots(1, 2), sides, strict=True):
        values = {name: scale * getattr(each, which) for name, each in norms.items()}
        most = max((float(each.max()) for each in values.values() if each.size), default=1.0)
        edges = np.linspace(0, 1.02 * most or 1.0, 41)
        for colour, (name, each) in zip(COLOURS, values.items(), strict=False):
            axis.hist(each, edges, histtype="step", color=colour, label=drawing.plain(name), linewidth=1.4)
        if which == norm:
            axis.axvline(
                scale * epsilon, color="#888888", linestyle="--", linewidth=1, label=f"ε = {budget(epsilon, norm)}"
            )
        axis.set_xlabel(unit)
        axis.set_ylabel("images")
    axis = figure.axes[0 if norm == "linf" else 1]
    axis.legend(fontsize=7, framealpha=0, loc="upper left")
    return figure


def _rate(rate: PooledRate) -> float:
    return math.nan if rate.rate is None else rate.rate
