"""What a report looks like on a terminal."""

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from pipeline.report import Denominator, Rate, Report, Success

_MEANING: dict[Denominator, str] = {
    "all": "all images",
    "target": "images that the target classifies correctly when clean",
    "joint": "images that every target classifies correctly when clean",
}


def tables(report: Report, *, denominator: Denominator) -> Group:
    """A table per dataset: attacks down, targets across, clean accuracy first."""
    return Group(*(_table(report, dataset, denominator) for dataset in sorted(report.images)))


def show(report: Report, *, denominator: Denominator, console: Console) -> None:
    """Prints the tables, and what they leave out."""
    if not report.success and not report.accuracy:
        console.print("nothing is scored yet")
    console.print(tables(report, denominator=denominator))
    if report.unscored:
        console.print(f"{report.unscored} result files await clean predictions of their part and are left out")
    if report.missing_shards or report.missing_results:
        console.print(
            f"incomplete: {report.missing_shards} shards and {report.missing_results} results that runs set out to "
            "make are missing; gnp verify names them"
        )


def _table(report: Report, dataset: str, denominator: Denominator) -> Table:
    images = report.images[dataset]
    targets = {row.target_id: row for row in report.accuracy if row.dataset == dataset}
    counted = f"{images['n_ok']} images" + (
        f", {images['n_quarantined']} quarantined" if images["n_quarantined"] else ""
    )
    table = Table(
        title=escape(f"{dataset}: {counted}"),
        caption=f"success over {_MEANING[denominator]}: rate, count/denominator, 95% Wilson interval",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("source → attack, ε", overflow="fold")
    for target in targets.values():
        table.add_column(f"{escape(target.target)}\n[dim]{target.policy}[/dim]", justify="right", overflow="fold")
    table.add_row("clean accuracy", *(_cell(target.correct) for target in targets.values()), end_section=True)
    attacks: dict[tuple[str, str], dict[str, Success]] = {}
    for row in report.success:
        if row.dataset == dataset:
            attacks.setdefault((row.source_id, row.attack_id), {})[row.target_id] = row
    for rows in sorted(attacks.values(), key=lambda rows: _strength(rows, denominator)):
        first = next(iter(rows.values()))
        cells = [_cell(rows[target].rates[denominator]) if target in rows else "–" for target in targets]
        table.add_row(
            f"{escape(first.source)} →\n[bold]{escape(first.attack)}[/bold], {first.epsilon * 255:.3g}/255", *cells
        )
    return table


def _strength(rows: dict[str, Success], denominator: Denominator) -> tuple[str, float]:
    """Sorts a source's attacks from the weakest to the strongest, by mean success over targets."""
    rates = [row.rates[denominator].rate or 0.0 for row in rows.values()]
    return next(iter(rows.values())).source_id, sum(rates) / len(rates)


def _cell(rate: Rate) -> str:
    if rate.rate is None or rate.interval is None:
        return "0/0"
    low, high = rate.interval
    return f"[bold]{rate.rate:.0%}[/bold] {rate.count}/{rate.n}\n[dim]{100 * low:.0f}–{high:.0%}[/dim]"
