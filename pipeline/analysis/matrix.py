"""The success matrix of a report: attacks as rows, targets as columns."""

from collections import defaultdict
from dataclasses import dataclass

from pipeline.analysis.report import Accuracy, Report, Success
from pipeline.results.denominators import Denominator
from pipeline.results.intervals import PooledRate, Rate


@dataclass(frozen=True)
class MatrixRow:
    """One attack from one source: a row of the success matrix.

    Attributes:
        first: Success on one of the targets, for the names and the budget of the row.
        pooled: Success pooled over all targets that are not the source itself; None if there are none.
        by_target: Success on each target; None if it has not been scored.
    """

    first: Success
    pooled: PooledRate | None
    by_target: tuple[Rate | None, ...]


def success_matrix(report: Report, dataset: str, denominator: Denominator) -> tuple[list[Accuracy], list[MatrixRow]]:
    """A dataset's targets (columns), and its attacks on them (rows): by source, then by ascending mean success."""
    targets = [row for row in report.accuracy if row.dataset == dataset]
    pooled = {
        (row.source_id, row.attack_id): row.rates[denominator] for row in report.transfer if row.dataset == dataset
    }
    attacks: dict[tuple[str, str], dict[str, Success]] = defaultdict(dict)
    for row in report.success:
        if row.dataset == dataset:
            attacks[row.source_id, row.attack_id][row.target_id] = row
    rows = []
    for key, scored in attacks.items():
        rates = [
            scored[target.target_id].rates[denominator] if target.target_id in scored else None for target in targets
        ]
        rows.append(MatrixRow(first=next(iter(scored.values())), pooled=pooled.get(key), by_target=tuple(rates)))

    def mean_success(row: MatrixRow) -> tuple[str, float]:
        scored = attacks[row.first.source_id, row.first.attack_id].values()
        rates = [success.rates[denominator].rate or 0.0 for success in scored]
        return row.first.source_id, sum(rates) / len(rates)

    return targets, sorted(rows, key=mean_success)
