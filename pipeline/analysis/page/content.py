"""Content of the page, section by section, gathered from a store."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.analysis import ablation, compare, matrix, report, sample_view
from pipeline.analysis.matrix import MatrixRow
from pipeline.analysis.page import figures
from pipeline.analysis.page.details import AttackDetails, attack_details
from pipeline.analysis.page.figures import CaptionedFigure
from pipeline.analysis.page.gallery import GallerySample, gallery
from pipeline.analysis.paired_statistics import Comparisons, PooledComparison, TargetComparison
from pipeline.analysis.report import Accuracy, PooledSuccess, Report
from pipeline.analysis.sample_view import short
from pipeline.ledger import Failure, Ledger
from pipeline.ledger.quarantined import QuarantinedImage, list_quarantined
from pipeline.maintenance.status import PlanStatus, status
from pipeline.results.denominators import DENOMINATOR_LABELS, Denominator
from pipeline.results.intervals import PooledRate

# Lists on the page are cut at these lengths; the full number stands beside them.
MAX_QUARANTINED = 200
_MAX_CLASS_CHANGES = 25
# What generators record of themselves in the marker of an adversarial part.
_PROVENANCE = ("device", "versions", "threads", "batch_size", "attempt")


@dataclass(frozen=True)
class GainRow:
    """One row of the table of gains."""

    row: TargetComparison | PooledComparison
    target: str
    gain: float | None
    interval: tuple[float, float] | None
    n: int
    p_value: float | None


@dataclass(frozen=True)
class StrongestAttack:
    """The strongest attack of a dataset in detail.

    Attributes:
        row: Its success.
        budget: Its budget as text.
        classes: Class name, and success on images of that class.
        class_changes: Clean prediction, adversarial prediction, and how often; the most frequent.
        n_class_changes: Number of all class changes.
        gallery: Rule → samples.
    """

    row: PooledSuccess
    budget: str
    classes: list[tuple[str, PooledRate]]
    class_changes: list[tuple[str, str, int]]
    n_class_changes: int
    gallery: dict[str, list[GallerySample]]


@dataclass(frozen=True)
class DatasetSection:
    """The section of one dataset.

    Attributes:
        id: Identity of the dataset.
        images: Numbers of images read, usable and quarantined.
        targets: The targets with their accuracy: columns of the matrix.
        matrix: Denominator → rows of the success matrix.
        gradients: Identities of source and attack → gradients per image.
        gains: The table of gains.
        figures: Kind of figure → figures.
        strongest: The strongest attack; None if nothing has been scored.
        class_name: The name of a class index.
    """

    id: str
    images: Mapping[str, int]
    targets: list[Accuracy]
    matrix: dict[Denominator, list[MatrixRow]]
    gradients: Mapping[tuple[str, str], int | None]
    gains: list[GainRow]
    figures: dict[str, list[CaptionedFigure]]
    strongest: StrongestAttack | None
    class_name: Callable[[int], str]


@dataclass(frozen=True)
class PageContent:
    """The content of the page.

    Attributes:
        denominator: The denominator of figures and gains.
        base: Name of the base attack of gains.
        report: All rates.
        datasets: One section per dataset.
        quarantined: The first `MAX_QUARANTINED` quarantined images.
        n_quarantined: Number of all quarantined images.
        failures: Items that runs gave up.
        plans: Progress of each recorded plan.
        recorded_plans: Id of each plan → the plan as recorded.
        provenance: What generators recorded of themselves: name → value → number of adversarial parts.
    """

    denominator: Denominator
    base: str
    report: Report
    datasets: list[DatasetSection]
    quarantined: list[QuarantinedImage]
    n_quarantined: int
    failures: list[Failure]
    plans: list[PlanStatus]
    recorded_plans: dict[str, Any]
    provenance: dict[str, Counter[str]] = field(default_factory=dict)


def gather(ledger: Ledger, *, base: str, denominator: Denominator) -> PageContent:
    """Reads the content of the page from a store.

    Args:
        ledger: The store.
        base: Name of the base attack of gains.
        denominator: Which images count in gains and figures; the matrix is given under all three denominators.

    Raises:
        IntegrityError: A stored file is damaged.
        StorageError: The store failed.
    """
    summary = report.summarise(ledger)
    comparisons = compare.compare(ledger, base=base, denominator=denominator)
    settings = ablation.attack_settings(ledger)
    provenance, gradients = _provenance_and_gradients(ledger)
    plans = status(ledger)
    quarantined = list(list_quarantined(ledger))
    datasets = [
        _dataset_section(ledger, dataset, summary, comparisons, settings, gradients, denominator)
        for dataset in sorted(summary.images)
    ]
    return PageContent(
        denominator=denominator,
        base=base,
        report=summary,
        datasets=datasets,
        quarantined=quarantined[:MAX_QUARANTINED],
        n_quarantined=len(quarantined),
        failures=[failure for plan in plans for failure in plan.failures],
        plans=plans,
        recorded_plans={
            key.removeprefix("plans/").removesuffix(".json"): ledger.read_plan(key) for key in ledger.plan_keys()
        },
        provenance=provenance,
    )


def _dataset_section(
    ledger: Ledger,
    dataset: str,
    summary: Report,
    comparisons: Comparisons,
    settings: Mapping[str, Mapping[str, ablation.SettingValue]],
    gradients: Mapping[tuple[str, str], int | None],
    denominator: Denominator,
) -> DatasetSection:
    transfer = [row for row in summary.transfer if row.dataset == dataset]
    matrices = {name: matrix.success_matrix(summary, dataset, name) for name in DENOMINATOR_LABELS}
    by_target = [row for row in comparisons.by_target if row.dataset == dataset]
    pooled = [row for row in comparisons.pooled if row.dataset == dataset]
    budgets = {row.attack_id: row for row in summary.success if row.dataset == dataset}
    class_name = sample_view.class_names(ledger, dataset)
    strongest, class_figures = None, []
    best = max(transfer, key=lambda row: row.rates[denominator].rate or 0.0, default=None)
    if best is not None:
        details = attack_details(ledger, best, denominator=denominator)
        strongest = _strongest_attack(ledger, best, details, budgets[best.attack_id].budget, class_name)
        class_figures = [figures.class_figure(best, details)]
    return DatasetSection(
        id=dataset,
        images=summary.images[dataset],
        targets=matrices[denominator][0],
        matrix={name: rows for name, (_, rows) in matrices.items()},
        gradients=gradients,
        gains=_gain_rows(by_target, pooled),
        figures={
            "gains": figures.gain_figures(pooled, denominator),
            "curves": figures.curve_figures(transfer, settings, denominator),
            "ablation": figures.ablation_figures(ledger, summary, dataset, denominator),
            "classes": class_figures,
            "norms": figures.norm_figures(ledger, transfer, budgets, denominator),
        },
        strongest=strongest,
        class_name=class_name,
    )


def _gain_rows(by_target: Sequence[TargetComparison], pooled: Sequence[PooledComparison]) -> list[GainRow]:
    """Rows of single sources: pooled over all other targets first, then target by target."""
    pooled_rows = [
        GainRow(row, "all others", row.gain.rate, row.gain.interval, row.gain.n, None) for row in pooled if row.ids[0]
    ]
    return pooled_rows + [GainRow(row, row.target, row.gain, row.interval, row.n, row.p_value) for row in by_target]


def _strongest_attack(
    ledger: Ledger, row: PooledSuccess, details: AttackDetails, budget: str, class_name: Callable[[int], str]
) -> StrongestAttack:
    changes = sorted(details.class_changes.items(), key=lambda item: (-item[1], item[0]))
    return StrongestAttack(
        row=row,
        budget=budget,
        classes=[(short(class_name(label)), rate) for label, rate in sorted(details.by_class.items())],
        class_changes=[
            (short(class_name(clean)), short(class_name(adversarial)), count)
            for (clean, adversarial), count in changes[:_MAX_CLASS_CHANGES]
        ],
        n_class_changes=sum(details.class_changes.values()),
        gallery=gallery(ledger, row),
    )


def _provenance_and_gradients(
    ledger: Ledger,
) -> tuple[dict[str, Counter[str]], dict[tuple[str, str], int | None]]:
    """Provenance of adversarial parts, and gradients per image by source and attack, in one pass over the markers."""
    provenance: dict[str, Counter[str]] = {name: Counter() for name in _PROVENANCE}
    gradients: dict[tuple[str, str], int | None] = {}
    for marker in ledger.read_markers(ledger.list_units("adversarial")):
        gradients[marker.unit.source, marker.unit.attack] = marker.fact("gradients")
        for name, counts in provenance.items():
            value = marker.facts.get(name, "not recorded")
            counts[
                ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)
            ] += 1
    return provenance, gradients
