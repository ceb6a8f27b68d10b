"""Figures of the page with their captions: gains, curves, ablations, success by class, perturbation norms."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from pipeline.analysis import ablation, ablation_plot, drawing, forest_plot
from pipeline.analysis.page import charts
from pipeline.analysis.page.details import AttackDetails, perturbation_norms
from pipeline.analysis.paired_statistics import PooledComparison
from pipeline.analysis.report import PooledSuccess, Report, Success, budget
from pipeline.attack.ball import BallNorm
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger
from pipeline.results.denominators import Denominator

# Setting, norm of the budget, label of the axis, factor from the setting's value to the axis.
_CURVES: tuple[tuple[str, BallNorm, str, float], ...] = (
    ("epsilon", "linf", "ε, in 1/255", 255),
    ("epsilon", "l2", "ε, in L2", 1),
    ("steps", "linf", "steps, in an L∞ ball", 1),
    ("steps", "l2", "steps, in an L2 ball", 1),
)


@dataclass(frozen=True)
class CaptionedFigure:
    """A figure as an `<svg>` element, and its caption."""

    svg: str
    caption: str


def gain_figures(comparisons: Sequence[PooledComparison], denominator: Denominator) -> list[CaptionedFigure]:
    """A forest plot per source, and one over every source if there are several."""
    by_source: dict[str, list[PooledComparison]] = {}
    for row in comparisons:
        by_source.setdefault(row.ids[0], []).append(row)
    figures = []
    for rows in by_source.values():
        figure = forest_plot.draw(rows, base=rows[0].base.partition("[")[0], denominator=denominator)
        gains = "; ".join(
            f"{row.attack} {as_points(row.gain.rate)} points over {row.base}"
            for row in forest_plot.nearest_in_cost(rows)
            if row.gain.rate is not None
        )
        source = rows[0].source or "every source"
        figures.append(_captioned(figure, f"Gains of attacks from {source}, pooled over all other targets: {gains}"))
    return figures


def curve_figures(
    rows: Sequence[PooledSuccess],
    settings: Mapping[str, Mapping[str, ablation.SettingValue]],
    denominator: Denominator,
) -> list[CaptionedFigure]:
    """Success along ε and along steps, per source and norm of the budget."""
    figures = []
    for source in dict.fromkeys(row.source_id for row in rows):
        from_source = [row for row in rows if row.source_id == source]
        for along, norm, label, scale in _CURVES:
            curves = charts.setting_curves(from_source, settings, along=along, norm=norm)
            if curves:
                figure = charts.draw_curves(curves, label=label, scale=scale, denominator=denominator)
                caption = f"From {from_source[0].source}: success over {label}; bands: 95% intervals over images"
                figures.append(_captioned(figure, caption))
    return figures


def ablation_figures(ledger: Ledger, summary: Report, dataset: str, denominator: Denominator) -> list[CaptionedFigure]:
    """A figure per grid and source, if settings vary other than ε and steps, which have curves of their own."""
    figures = []
    for grid in dict.fromkeys(row.attack.partition("[")[0] for row in summary.success if "[" in row.attack):
        try:
            points = ablation.grid_points(ledger, summary, attack=grid, denominator=denominator)
            of_dataset = [point for point in points if point.dataset == dataset]
            for source in dict.fromkeys(point.source_id for point in of_dataset):
                from_source = [point for point in of_dataset if point.source_id == source]
                varying = ablation.varying_settings(from_source)
                if set(varying) - {"epsilon", "steps"}:
                    caption = f"{grid} from {from_source[0].source} over {', '.join(varying)}"
                    figures.append(_captioned(ablation_plot.draw(from_source, denominator=denominator), caption))
        except RecipeError:  # a single attack, or more settings than a figure has room for: the matrix has them all
            continue
    return figures


def class_figure(row: PooledSuccess, details: AttackDetails) -> CaptionedFigure:
    """Success of one attack by class."""
    caption = f"{row.attack} from {row.source}: success by class, pooled over all other targets"
    return _captioned(charts.draw_classes(details.by_class), caption)


def norm_figures(
    ledger: Ledger, rows: Sequence[PooledSuccess], budgets: Mapping[str, Success], denominator: Denominator
) -> list[CaptionedFigure]:
    """Perturbation norms of the strongest attacks, per source and budget.

    Args:
        ledger: The store.
        rows: Success of the attacks of one dataset.
        budgets: Identity of each attack → a row with its budget.
        denominator: By whose success attacks are ranked.
    """
    groups: dict[tuple[str, float, str], list[PooledSuccess]] = {}
    for row in sorted(rows, key=lambda row: -(row.rates[denominator].rate or 0.0)):
        epsilon, norm = budgets[row.attack_id].epsilon, budgets[row.attack_id].norm
        groups.setdefault((row.source_id, epsilon, norm), []).append(row)
    figures = []
    for (_, epsilon, norm), group in groups.items():
        names = Counter(row.attack for row in group)  # two attacks can have one name
        norms = {
            row.attack if names[row.attack] == 1 else row.attack_id: perturbation_norms(ledger, row)
            for row in group[: len(charts.COLOURS)]
        }
        images = sum(len(values.linf) for values in norms.values())
        if images:
            parts_read = sum(values.parts_read for values in norms.values())
            parts = sum(values.parts for values in norms.values())
            caption = f"From {group[0].source} within {budget(epsilon, norm)}: perturbations of {images} stored images "
            caption += f"from {parts_read} of {parts} parts"
            if len(group) > len(norms):
                caption += f"; the strongest {len(norms)} of {len(group)} attacks"
            figures.append(_captioned(charts.draw_norms(norms, epsilon=epsilon, norm=norm), caption))
    return figures


def as_points(gain: float) -> str:
    """A gain in percentage points as text: +3, −3, 0."""
    rounded = round(100 * gain)
    return f"{'+' if rounded > 0 else '−' if rounded else ''}{abs(rounded)}"


def _captioned(figure: Figure, caption: str) -> CaptionedFigure:
    return CaptionedFigure(drawing.svg(figure, alt_text=caption), caption)
