"""Reports for other programs: CSV, and LaTeX and Markdown tables."""

import csv
import io

from tabulate import tabulate

from pipeline.analysis.matrix import success_matrix
from pipeline.analysis.report import PooledSuccess, Report, Success
from pipeline.results.denominators import DENOMINATOR_LABELS, Denominator
from pipeline.results.intervals import PooledRate, Rate

_COLUMNS = (
    "dataset",
    "source",
    "source_id",
    "attack",
    "attack_id",
    "epsilon",
    "norm",
    "target",
    "target_id",
    "policy",
    "denominator",
    "count",
    "n",
    "rate",
    "low",
    "high",
)


def report_csv(report: Report) -> str:
    """A report as CSV: a row per rate and denominator; rows of clean accuracy have no source and attack."""
    buffer = io.StringIO()
    rows = csv.DictWriter(buffer, _COLUMNS, restval="", lineterminator="\n")
    rows.writeheader()
    for accuracy in report.accuracy:
        names = {name: getattr(accuracy, name) for name in ("dataset", "target", "target_id", "policy")}
        rows.writerow({**names, "denominator": "all", **_rate_columns(accuracy.correct)})
    budgets = {(row.dataset, row.attack_id): (row.epsilon, row.norm) for row in report.success}
    rates: list[Success | PooledSuccess] = [*report.success, *report.transfer]
    for row in rates:
        epsilon, norm = budgets[row.dataset, row.attack_id]
        names = {name: getattr(row, name, "") for name in _COLUMNS[:10]}
        names |= {} if isinstance(row, Success) else {"target": "all others"}
        for denominator, rate in row.rates.items():
            values = {"epsilon": epsilon, "norm": norm, "denominator": denominator, **_rate_columns(rate)}
            rows.writerow({**names, **values})
    return buffer.getvalue()


def report_table(report: Report, *, denominator: Denominator, latex: bool) -> str:
    """A table per dataset, attacks down, targets across; as LaTeX with booktabs, or Markdown."""
    return "\n".join(_dataset_table(report, dataset, denominator, latex) for dataset in sorted(report.images))


def _dataset_table(report: Report, dataset: str, denominator: Denominator, latex: bool) -> str:
    targets, lines = success_matrix(report, dataset, denominator)
    rows = [["", "clean accuracy", "", "", *(_cell(target.correct) for target in targets)]]
    for line in lines:
        first = line.first
        rows.append([first.source, first.attack, first.budget, _cell(line.pooled), *map(_cell, line.by_target)])
    headers = [
        "source",
        "attack",
        "epsilon" if latex else "ε",
        "all others",
        *(f"{target.target} ({target.policy})" for target in targets),
    ]
    caption = f"{dataset}: success over {DENOMINATOR_LABELS[denominator]}, % of images, 95% interval"
    if latex:
        return f"% {caption}\n{tabulate(rows, headers, tablefmt='latex_booktabs', disable_numparse=True)}\n"
    warning = f"\nWarning: {report.label_warnings[dataset]}.\n" if dataset in report.label_warnings else ""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return f"{caption}\n\n{tabulate(escaped, headers, tablefmt='github', disable_numparse=True)}\n{warning}"


def _rate_columns(rate: Rate | PooledRate) -> dict[str, object]:
    low, high = rate.interval or ("", "")
    return {"count": rate.count, "n": rate.n, "rate": "" if rate.rate is None else rate.rate, "low": low, "high": high}


def _cell(rate: Rate | PooledRate | None) -> str:
    if rate is None or rate.rate is None or rate.interval is None:
        return "" if rate is None else "0/0"
    low, high = rate.interval
    return f"{100 * rate.rate:.0f} of {rate.n} ({100 * low:.0f}–{100 * high:.0f})"
