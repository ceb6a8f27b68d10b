"""Charts of the page: success along a setting, success by class, perturbation norms."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.analysis import drawing
from pipeline.analysis.ablation import SettingValue
from pipeline.analysis.page.details import PerturbationNorms
from pipeline.analysis.report import PooledSuccess, budget
from pipeline.attack.ball import BallNorm
from pipeline.results.denominators import DENOMINATOR_LABELS, Denominator
from pipeline.results.intervals import PooledRate

COLOURS = (*drawing.COLOURS, "#888888")
# Of a grid, only this number of lines is drawn: the strongest.
_MAX_LINES = 7

# Name of a line → its points: value of the setting, success.
Curves = dict[str, list[tuple[float, PooledSuccess]]]


def setting_curves(
    rows: Sequence[PooledSuccess], settings: Mapping[str, Mapping[str, SettingValue]], *, along: str, norm: BallNorm
) -> Curves:
    """Attacks that differ in one setting only, as curves along it; at most the `_MAX_LINES` strongest.

    Args:
        rows: Success of attacks on one dataset, from one source.
        settings: Identity of each attack → its settings.
        along: `epsilon` or `steps`.
        norm: Norm of the budget; attacks in the other norm are left out.
    """
    groups: dict[tuple[tuple[str, str], ...], list[tuple[float, PooledSuccess]]] = {}
    for row in rows:
        values = settings.get(row.attack_id, {})
        if along not in values or values.get("norm", "linf") != norm:
            continue
        fixed = {name: str(value) for name, value in values.items() if name not in (along, "norm")}
        key = (("attack", row.attack.partition("[")[0]), *sorted(fixed.items()))
        groups.setdefault(key, []).append((float(Fraction(str(values[along]))), row))
    lines = {key: sorted(points, key=lambda point: point[0]) for key, points in groups.items() if len(dict(points)) > 1}
    fixed_settings = [dict(key) for key in lines]
    names = {name for values in fixed_settings for name in values} - {"attack"}
    varying = {name for name in names if len({values.get(name) for values in fixed_settings}) > 1}
    curves = {
        ", ".join([dict(key)["attack"], *(f"{name} = {value}" for name, value in key if name in varying)]): points
        for key, points in lines.items()
    }
    strongest = sorted(curves, key=lambda name: -max(_rate_or_nan(row.rates["all"]) for _, row in curves[name]))
    return {name: curves[name] for name in strongest[:_MAX_LINES]}


def draw_curves(curves: Curves, *, label: str, scale: float, denominator: Denominator) -> Figure:
    """Success on all targets that are not the source, along a setting, with 95% bands."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axis = figure.subplots()
    for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
        x, rates = [scale * value for value, _ in points], [row.rates[denominator] for _, row in points]
        shown = drawing.escape_dollars(name)
        axis.plot(x, [100 * _rate_or_nan(rate) for rate in rates], "o-", color=colour, label=shown, markersize=4)
        low, high = zip(*(rate.interval or (math.nan, math.nan) for rate in rates), strict=True)
        axis.fill_between(x, 100 * np.array(low), 100 * np.array(high), color=colour, alpha=0.15)
    axis.set_xlabel(label)
    axis.set_ylabel(f"success, % of {DENOMINATOR_LABELS[denominator]}", fontsize=8)
    axis.set_ylim(0, 100)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, framealpha=0)
    return figure


def draw_classes(by_class: Mapping[int, PooledRate]) -> Figure:
    """Success by class: a point per class, in ascending order."""
    rates = sorted(100 * rate.rate for rate in by_class.values() if rate.rate is not None)
    figure = Figure(figsize=(7.5, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(1, len(rates) + 1), rates, "o", color=COLOURS[0], markersize=3)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(f"{len(rates)} classes, by ascending success")
    axis.set_ylabel("success, %")
    axis.set_ylim(-3, 103)
    axis.grid(alpha=0.25)
    return figure


def draw_norms(norms: Mapping[str, PerturbationNorms], *, epsilon: float, norm: str) -> Figure:
    """Histograms of perturbation norms: a line per attack, L∞ on the left and L2 on the right."""
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    sides = (("linf", 255, "L∞, in 1/255"), ("l2", 1, "L2"))
    for axis, (name, scale, unit) in zip(figure.subplots(1, 2), sides, strict=True):
        norms_by_attack = {attack: scale * getattr(values, name) for attack, values in norms.items()}
        largest = max((float(values.max()) for values in norms_by_attack.values() if values.size), default=1.0)
        edges = np.linspace(0, 1.02 * largest or 1.0, 41)
        for colour, (attack, values) in zip(COLOURS, norms_by_attack.items(), strict=False):
            label = drawing.escape_dollars(attack)
            axis.hist(values, edges, histtype="step", color=colour, label=label, linewidth=1.4)
        if name == norm:
            label = f"ε = {budget(epsilon, norm)}"
            axis.axvline(scale * epsilon, color="#888888", linestyle="--", linewidth=1, label=label)
        axis.set_xlabel(unit)
        axis.set_ylabel("images")
    axis = figure.axes[0 if norm == "linf" else 1]
    axis.legend(fontsize=7, framealpha=0, loc="upper left")
    return figure


def _rate_or_nan(rate: PooledRate) -> float:
    return math.nan if rate.rate is None else rate.rate
