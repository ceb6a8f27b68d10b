"""What stands on the page, section by section, gathered from a store."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.analysis import ablation, compare, drawing, forest_plot, picture, report
from pipeline.analysis.compare import Comparison, Together
from pipeline.analysis.page import charts
from pipeline.analysis.page.details import Details, details, norms
from pipeline.analysis.page.gallery import Shown, gallery
from pipeline.analysis.report import Accuracy, Line, Overall, Report, Success, budget
from pipeline.attack.ball import BallNorm
from pipeline.errors import RecipeError
from pipeline.ledger import Failure, Ledger
from pipeline.maintenance.status import PlanStatus, status
from pipeline.plan import quarantine
from pipeline.plan.quarantine import Quarantined
from pipeline.results.intervals import PooledRate
from pipeline.results.predictions import COUNTED, Denominator

# Of what may be many, so many are listed; how many there are stands beside them.
MOST = 200
_MOST_TURNS = 25


@dataclass(frozen=True)
class Figure:
    """A figure, and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Gain:
    """One line of the table of gains."""

    row: Comparison | Together
    target: str
    gain: float | None
    interval: tuple[float, float] | None
    n: int
    p_value: float | None


@dataclass(frozen=True)
class Close:
    """The strongest attack, looked at closely."""

    row: Overall
    budget: str
    classes: list[tuple[str, PooledRate]]
    turned: list[tuple[str, str, int]]
    turns: int
    gallery: dict[str, list[Shown]]


@dataclass(frozen=True)
class Dataset:
    """All that is said of one dataset."""

    id: str
    images: Mapping[str, int]
    targets: list[Accuracy]
    matrix: dict[Denominator, list[Line]]
    costs: Mapping[tuple[str, str], int | None]
    gains: list[Gain]
    figures: dict[str, list[Figure]]
    close: Close | None
    name: Callable[[int], str]


@dataclass(frozen=True)
class Content:
    """The page.

    Attributes:
        denominator: Under which figures and gains are.
        base: What gains are over.
        report: The rates.
        datasets: One section each.
        quarantined: The first `MOST` images that could not be used.
        n_quarantined: How many there are.
        failures: What runs gave up.
        plans: How far each recorded plan is.
        described: Plan → what it set out to make.
        made: What made the images: facts → how many parts.
    """

    denominator: Denominator
    base: str
    report: Report
    datasets: list[Dataset]
    quarantined: list[Quarantined]
    n_quarantined: int
    failures: list[Failure]
    plans: list[PlanStatus]
    described: dict[str, Any]
    made: dict[str, Counter[str]] = field(default_factory=dict)


def gather(ledger: Ledger, *, base: str, denominator: Denominator) -> Content:
    """Reads a store for its page.

    Args:
        ledger: The store.
        base: Name of the attack that gains are over.
        denominator: Which images count in gains and figures; the matrix is given under all three.

    Raises:
        IntegrityError: Something stored is damaged.
        StorageError: The store failed.
    """
    summary, compared = report.summarise(ledger), compare.compare(ledger, base=base, denominator=denominator)
    described = {key.removeprefix("plans/").removesuffix(".json"): ledger.plan(key) for key in ledger.plans()}
    settings, plans = ablation.settings_of(ledger), status(ledger)
    made, costs = _made(ledger)
    rejected = list(quarantine.listed(ledger))
    datasets = [
        _dataset(ledger, name, summary, compared, settings, costs, picture.class_names(ledger, name), denominator)
        for name in sorted(summary.images)
    ]
    return Content(
        denominator=denominator,
        base=base,
        report=summary,
        datasets=datasets,
        quarantined=rejected[:MOST],
        n_quarantined=len(rejected),
        failures=[failure for plan in plans for failure in plan.failures],
        plans=plans,
        described=described,
        made=made,
    )


def _dataset(
    ledger: Ledger,
    dataset: str,
    summary: Report,
    compared: compare.Compared,
    settings: Mapping[str, Mapping[str, ablation.Value]],
    costs: Mapping[tuple[str, str], int | None],
    name: Callable[[int], str],
    denominator: Denominator,
) -> Dataset:
    rows = [row for row in summary.transfer if row.dataset == dataset]
    success = [row for row in summary.success if row.dataset == dataset]
    tables = {which: report.matrix(summary, dataset, which) for which in COUNTED}
    each = [row for row in compared.each if row.dataset == dataset]
    together = [row for row in compared.together if row.dataset == dataset]
    strongest = max(rows, key=lambda row: row.rates[denominator].rate or 0.0, default=None)
    budgets = {row.attack_id: row for row in success}
    close, told = None, None
    if strongest is not None:
        told = details(ledger, strongest, denominator=denominator)
        close = _close(ledger, strongest, told, budgets[strongest.attack_id].budget, name)
    return Dataset(
        id=dataset,
        images=summary.images[dataset],
        targets=tables[denominator][0],
        matrix={which: lines for which, (_, lines) in tables.items()},
        costs=costs,
        gains=_gains(each, together),
        figures={
            "gains": _gain_figures(together, denominator),
            "curves": _curves(rows, settings, denominator),
            "ablation": _ablations(ledger, summary, dataset, denominator),
            "classes": [] if told is None or strongest is None else [_classes(strongest, told)],
            "norms": _norms(ledger, rows, budgets, denominator),
        },
        close=close,
        name=name,
    )


def _gains(each: Sequence[Comparison], together: Sequence[Together]) -> list[Gain]:
    over_all = [
        Gain(row, "all others", row.gain.rate, row.gain.interval, row.gain.n, None) for row in together if row.ids[0]
    ]
    return over_all + [Gain(row, row.target, row.gain, row.interval, row.n, row.p_value) for row in each]


def _gain_figures(together: Sequence[Together], denominator: Denominator) -> list[Figure]:
    grouped: dict[str, list[Together]] = {}
    for row in together:
        grouped.setdefault(row.ids[0], []).append(row)
    found = []
    for rows in grouped.values():
        figure = forest_plot.draw(rows, base=rows[0].base.partition("[")[0], denominator=denominator)
        gained = (
            f"{row.attack} {points(row.gain.rate)} points over {row.base}"
            for row in forest_plot.beside(rows)
            if row.gain.rate is not None
        )
        says = "; ".join(gained)
        source = rows[0].source or "every source"
        found.append(_figure(figure, f"What attacks from {source} gain on all other targets together: {says}"))
    return found


def _curves(
    rows: Sequence[Overall], settings: Mapping[str, Mapping[str, ablation.Value]], denominator: Denominator
) -> list[Figure]:
    found = []
    kinds: tuple[tuple[str, BallNorm, str, float], ...] = (
        ("epsilon", "linf", "ε, in 1/255", 255),
        ("epsilon", "l2", "ε, in L2", 1),
        ("steps", "linf", "steps, in an L∞ ball", 1),
        ("steps", "l2", "steps, in an L2 ball", 1),
    )
    for source in dict.fromkeys(row.source_id for row in rows):
        some = [row for row in rows if row.source_id == source]
        for along, norm, label, scale in kinds:
            lines = charts.curves(some, settings, along=along, norm=norm)
            if lines:
                figure = charts.draw_curves(lines, label=label, scale=scale, denominator=denominator)
                found.append(_figure(figure, f"From {some[0].source}: success along {label}; bands: 95%, over images"))
    return found


def _ablations(ledger: Ledger, summary: Report, dataset: str, denominator: Denominator) -> list[Figure]:
    """A figure a grid and source, where settings vary other than ε and steps, which have curves of their own."""
    found = []
    for grid in dict.fromkeys(row.attack.partition("[")[0] for row in summary.success if "[" in row.attack):
        try:
            points = ablation.points(ledger, summary, attack=grid, denominator=denominator)
            here = [point for point in points if point.dataset == dataset]
            for source in dict.fromkeys(point.source_id for point in here):
                some = [point for point in here if point.source_id == source]
                axes = ablation.axes(some)
                if set(axes) - {"epsilon", "steps"}:
                    caption = f"{grid} from {some[0].source} over {', '.join(axes)}"
                    found.append(_figure(ablation.draw(some, denominator=denominator), caption))
        except RecipeError:  # one attack is no grid, and a figure has no room for some: the matrix has them all
            continue
    return found


def _classes(row: Overall, told: Details) -> Figure:
    return _figure(
        charts.draw_classes(told.by_class),
        f"{row.attack} from {row.source}: success class by class on all other targets together",
    )


def _norms(
    ledger: Ledger, rows: Sequence[Overall], budgets: Mapping[str, Success], denominator: Denominator
) -> list[Figure]:
    """A figure a source and budget, with its strongest attacks."""
    grouped: dict[tuple[str, float, str], list[Overall]] = {}
    for row in sorted(rows, key=lambda row: -(row.rates[denominator].rate or 0.0)):
        told = budgets[row.attack_id]
        grouped.setdefault((row.source_id, told.epsilon, told.norm), []).append(row)
    found = []
    for (_, epsilon, norm), some in grouped.items():
        names = Counter(row.attack for row in some)  # two can be called alike
        shown = {
            row.attack if names[row.attack] == 1 else row.attack_id: norms(ledger, row)
            for row in some[: len(charts.COLOURS)]
        }
        images = sum(len(each.linf) for each in shown.values())
        if images:
            read = f"{sum(each.parts for each in shown.values())} of {sum(each.of_parts for each in shown.values())}"
            caption = f"From {some[0].source} within {budget(epsilon, norm)}: {images} stored images of {read} parts"
            if len(some) > len(shown):
                caption += f"; the strongest {len(shown)} of {len(some)} attacks"
            found.append(_figure(charts.draw_norms(shown, epsilon=epsilon, norm=norm), caption))
    return found


def _close(ledger: Ledger, row: Overall, told: Details, said: str, name: Callable[[int], str]) -> Close:
    return Close(
        row=row,
        budget=said,
        classes=[(picture.short(name(label)), rate) for label, rate in sorted(told.by_class.items())],
        turned=[
            (picture.short(name(before)), picture.short(name(after)), count)
            for (before, after), count in sorted(told.turned.items(), key=lambda item: (-item[1], item[0]))[
                :_MOST_TURNS
            ]
        ],
        turns=sum(told.turned.values()),
        gallery=gallery(ledger, row),
    )


def _made(ledger: Ledger) -> tuple[dict[str, Counter[str]], dict[tuple[str, str], int | None]]:
    """Under what adversarial parts were made, how many each; and by source and attack gradients an image."""
    found: dict[str, Counter[str]] = {
        name: Counter() for name in ("device", "versions", "threads", "batch_size", "attempt")
    }
    costs: dict[tuple[str, str], int | None] = {}
    for marker in ledger.markers(ledger.units("adversarial")):
        costs[marker.unit.source, marker.unit.attack] = marker.fact("gradients")
        for name, counted in found.items():
            said = marker.facts.get(name, "not recorded")
            told = ", ".join(f"{key} {value}" for key, value in said.items()) if isinstance(said, dict) else str(said)
            counted[told] += 1
    return found, costs


def _figure(figure: Any, caption: str) -> Figure:
    return Figure(drawing.svg(figure, says=caption), caption)


def points(gain: float) -> str:
    """A gain as people write it: +3, −3, 0."""
    rounded = round(100 * gain)
    return f"{'+' if rounded > 0 else '−' if rounded else ''}{abs(rounded)}"
