"""Rates for other programs: CSV, and tables for a paper or a README."""

import csv
import io

from tabulate import tabulate

from pipeline.analysis.report import Overall, Report, Success, matrix
from pipeline.results.intervals import PooledRate, Rate
from pipeline.results.predictions import COUNTED, Denominator

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


def csv_of(report: Report) -> str:
    """A line a rate, under every denominator; clean accuracy has no source and no attack, all others no target."""
    buffer = io.StringIO()
    rows = csv.DictWriter(buffer, _COLUMNS, restval="", lineterminator="\n")
    rows.writeheader()
    for one in report.accuracy:
        about = {"dataset": one.dataset, "target": one.target, "target_id": one.target_id, "policy": one.policy}
        rows.writerow({**about, "denominator": "all", **_told(one.correct)})
    budgets = {(row.dataset, row.attack_id): (row.epsilon, row.norm) for row in report.success}
    scored: list[Success | Overall] = [*report.success, *report.transfer]
    for row in scored:
        epsilon, norm = budgets[row.dataset, row.attack_id]
        names = {name: getattr(row, name, "") for name in _COLUMNS[:10]}
        names |= {} if isinstance(row, Success) else {"target": "all others"}
        for which, rate in row.rates.items():
            rows.writerow({**names, "epsilon": epsilon, "norm": norm, "denominator": which, **_told(rate)})
    return buffer.getvalue()


def table(report: Report, *, denominator: Denominator, latex: bool) -> str:
    """Attacks down, targets across, one table a dataset; LaTeX with booktabs, or Markdown."""
    return "\n".join(_table(report, dataset, denominator, latex) for dataset in sorted(report.images))


def _table(report: Report, dataset: str, denominator: Denominator, latex: bool) -> str:
    targets, lines = matrix(report, dataset, denominator)
    rows = [["", "clean accuracy", "", "", *(_cell(target.correct) for target in targets)]]
    for line in lines:
        first = line.first
        rows.append([first.source, first.attack, first.budget, _cell(line.others), *map(_cell, line.cells)])
    headers = [
        "source",
        "attack",
        "epsilon" if latex else "ε",
        "all others",
        *(f"{each.target} ({each.policy})" for each in targets),
    ]
    caption = f"{dataset}: success over {COUNTED[denominator]}, % of how many, 95% interval"
    if latex:
        return f"% {caption}\n{tabulate(rows, headers, tablefmt='latex_booktabs', disable_numparse=True)}\n"
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return f"{caption}\n\n{tabulate(escaped, headers, tablefmt='github', disable_numparse=True)}\n"


def _told(rate: Rate | PooledRate) -> dict[str, object]:
    low, high = rate.interval or ("", "")
    return {"count": rate.count, "n": rate.n, "rate": "" if rate.rate is None else rate.rate, "low": low, "high": high}


def _cell(rate: Rate | PooledRate | None) -> str:
    if rate is None or rate.rate is None or rate.interval is None:
        return "" if rate is None else "0/0"
    low, high = rate.interval
    return f"{100 * rate.rate:.0f} of {rate.n} ({100 * low:.0f}–{100 * high:.0f})"
