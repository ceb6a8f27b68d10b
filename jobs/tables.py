"""Terminal tables: reports, comparisons, grids of settings, one sample, and the status of a store."""

from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from jobs.output import counted, print_line
from pipeline.analysis.matrix import success_matrix
from pipeline.analysis.paired_statistics import Comparisons, PooledComparison, TargetComparison
from pipeline.analysis.report import Report, budget
from pipeline.maintenance.status import PlanStatus
from pipeline.results.denominators import DENOMINATOR_LABELS, Denominator
from pipeline.results.intervals import PooledRate, Rate

if TYPE_CHECKING:  # these import matplotlib, for which `gnp status` should not wait
    from pipeline.analysis.ablation import Point
    from pipeline.analysis.sample_view import Prediction, SampleView
    from pipeline.dataset.store import Sample


def report_tables(report: Report, *, denominator: Denominator) -> Group:
    """A table per dataset: attacks down, targets across, clean accuracy first."""
    return Group(*(_report_table(report, dataset, denominator) for dataset in sorted(report.images)))


def print_report(report: Report, *, denominator: Denominator, console: Console) -> None:
    """Prints the tables, and the number of results that they lack."""
    if not report.success and not report.accuracy:
        console.print("nothing is scored yet")
    console.print(report_tables(report, denominator=denominator))
    for dataset, warning in report.label_warnings.items():
        print_line(console, f"warning: {dataset}: {warning}")
    if report.unscored:
        console.print(f"{report.unscored} result files await clean predictions of their part and are left out")
    print_missing((report.missing_shards, report.missing_results), console=console)


def print_missing(missing: tuple[int, int], *, console: Console) -> None:
    """Prints the number of shards and results that runs planned and the store lacks; nothing if there are none."""
    if any(missing):
        shards, results = missing
        console.print(
            f"incomplete: {counted(shards, 'planned shard')} and {counted(results, 'planned result')} are missing; "
            "gnp verify names them"
        )


def print_status(plans: list[PlanStatus], *, console: Console) -> None:
    """Prints a few lines per plan: progress, runs, pace and failures."""
    for plan in plans:
        counts = plan.progress
        unread = counts.shards - counts.shards_known
        print_line(console, f"plan {plan.id} of {plan.dataset}: {'complete' if plan.complete else 'incomplete'}")
        print_line(
            console,
            f"  attacked {counts.attacked}/{counts.to_attack} parts, scored {counts.scored}/{counts.to_score} files"
            + (f"; {unread} of {counts.shards} shards have not begun and are not counted" if unread else ""),
        )
        for run in plan.runs[:5]:
            record = run.record
            state = record["state"] if run.live or record["state"] != "running" else "died, or lost its store"
            print_line(
                console,
                f"  run {run.id} on {record['host']}: {state}, last heartbeat {run.age_s:.0f} s ago; "
                f"{record['images']} images attacked in {record['seconds']:.0f} s, "
                f"{record['items_left']} of {record['items']} items left",
            )
        if plan.images_per_s is not None:
            left = "" if plan.remaining_s is None else f", about {timedelta(seconds=round(plan.remaining_s))} left"
            print_line(console, f"  {plan.images_per_s:.2f} images/s{left}")
        for failure in plan.failures:
            tries = "1 try" if failure.tries == 1 else f"{failure.tries} tries"
            print_line(console, f"  failed after {tries}: {failure.item}: {failure.reason}")


def print_sample(sample: "Sample", views: "list[SampleView]", *, console: Console) -> None:
    """Prints the targets' predictions of one sample, clean and under each attack, with the label's probability."""

    def cell(prediction: "Prediction") -> str:
        return f"{escape(prediction.text(sample.class_name))}\n[dim]{prediction.probability:.2f}[/dim]"

    table = Table(
        title=escape(f"{sample.shard}/{sample.key}: {sample.class_name(sample.label)}"),
        caption="the class that each target predicts, and below it the probability of the label",
        title_justify="left",
        caption_justify="left",
    )
    targets = {target.target_id: target for view in views for target in view.targets}
    table.add_column("source → attack", overflow="fold")
    for target in targets.values():
        table.add_column(escape(target.target), overflow="fold")
    clean = [cell(target.clean) for target in targets.values()]
    table.add_row("clean", *clean, end_section=True)
    for view in views:
        cells = {target.target_id: cell(target.adversarial) for target in view.targets}
        table.add_row(
            f"{escape(view.source)} →\n[bold]{escape(view.attack)}[/bold]",
            *(cells.get(target_id, "–") for target_id in targets),
        )
    console.print(table)


def print_comparisons(compared: Comparisons, *, denominator: Denominator, console: Console) -> None:
    """Prints a table per source and budget, attacks down, targets across; then one per budget over all sources."""
    caption = (
        f"points gained over the base on {DENOMINATOR_LABELS[denominator]}, 95% interval, McNemar's p (one of "
        f"{len(compared.by_target)} comparisons, not adjusted for their number); gradients per image in brackets. Of "
        "several models together, images times models are counted, and the interval is over images"
    )
    groups: dict[tuple[str, str, str], list[TargetComparison]] = {}
    for row in compared.by_target:
        groups.setdefault((row.dataset, row.ids[0], budget(row.epsilon, row.norm)), []).append(row)
    pooled = {(row.dataset, row.ids): row for row in compared.pooled}
    for (dataset, source_id, epsilon), rows in groups.items():
        targets = {row.ids[3]: row.target for row in rows}
        title = f"{dataset}, from {rows[0].source}, ε = {epsilon}"
        table = _comparison_table(title, caption, ["all others", *targets.values()])
        by_attack: dict[tuple[str, str], dict[str, TargetComparison]] = {}
        for row in rows:
            by_attack.setdefault((row.ids[1], row.ids[2]), {})[row.ids[3]] = row
        for (attack, base), by_target in by_attack.items():
            cells = [pooled.get((dataset, (source_id, attack, base))), *map(by_target.get, targets)]
            table.add_row(_attack_and_base(next(iter(by_target.values()))), *map(_gain_cell, cells))
        console.print(table)
    over_sources: dict[tuple[str, str], list[PooledComparison]] = {}
    for total in compared.pooled:
        if not total.ids[0]:
            over_sources.setdefault((total.dataset, budget(total.epsilon, total.norm)), []).append(total)
    for (dataset, epsilon), totals in over_sources.items():
        title = f"{dataset}, from every source, ε = {epsilon}"
        table = _comparison_table(title, caption, ["source × target", "all others"])
        for total in totals:
            table.add_row(_attack_and_base(total), str(total.models), _gain_cell(total))
        console.print(table)


def _comparison_table(title: str, caption: str, columns: list[str]) -> Table:
    table = Table(title=escape(title), caption=caption, title_justify="left", caption_justify="left")
    table.add_column("attack, against", overflow="fold")
    for column in columns:
        table.add_column(escape(column), justify="right", overflow="fold")
    return table


def _attack_and_base(row: TargetComparison | PooledComparison) -> str:
    attack, base = f"{escape(row.attack)}[/bold] ({_count(row.gradients)})", escape(row.base)
    return f"[bold]{attack}\n{base} ({_count(row.base_gradients)})"


def print_grid(grid: "list[Point]", axes: list[str], *, denominator: Denominator, console: Console) -> None:
    """Prints a row per point of a grid of settings, the strongest last."""
    table = Table(
        caption=f"success over {DENOMINATOR_LABELS[denominator]}: rate, count/denominator, 95% interval; "
        "transfer counts images times targets, and its interval is over images",
        caption_justify="left",
    )
    for name in ("source", *axes, "on the source", "transfer"):
        table.add_column(name, justify="right", overflow="fold")
    for point in sorted(grid, key=lambda point: point.transfer.rate or 0.0):
        settings = [escape(str(point.settings.get(name, "–"))) for name in axes]
        table.add_row(escape(point.source), *settings, _cell(point.white_box), _cell(point.transfer))
    console.print(table)


def _gain_cell(row: TargetComparison | PooledComparison | None) -> str:
    if row is None:
        return "–"
    if isinstance(row, PooledComparison):
        gain, n, interval, p_value = row.gain.rate, row.gain.n, row.gain.interval, ""
    else:
        gain, n, interval, p_value = row.gain, row.n, row.interval, f", p = {row.p_value:.2g}"
    if gain is None or interval is None:
        return "0/0"
    low, high = (f"{round(100 * bound):+d}" for bound in interval)
    return f"[bold]{round(100 * gain):+d}[/bold] of {n}\n[dim]{low} … {high}{p_value}[/dim]"


def _report_table(report: Report, dataset: str, denominator: Denominator) -> Table:
    images = report.images[dataset]
    targets, lines = success_matrix(report, dataset, denominator)
    pooled = any(line.pooled is not None for line in lines)
    quarantined = f", {images['n_quarantined']} quarantined" if images["n_quarantined"] else ""
    table = Table(
        title=escape(f"{dataset}: {images['n_ok']} images{quarantined}"),
        caption=f"success over {DENOMINATOR_LABELS[denominator]}: rate, count/denominator, 95% interval"
        + ("; all others except the source: images times targets, the interval over images" if pooled else ""),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("source → attack, ε", overflow="fold")
    if pooled:
        table.add_column("all others", justify="right", overflow="fold")
    for target in targets:
        table.add_column(f"{escape(target.target)}\n[dim]{target.policy}[/dim]", justify="right", overflow="fold")
    blank = ["–"] if pooled else []
    table.add_row("clean accuracy", *blank, *(_cell(target.correct) for target in targets), end_section=True)
    for line in lines:
        name = f"{escape(line.first.source)} →\n[bold]{escape(line.first.attack)}[/bold], {line.first.budget}"
        cells = ["–" if cell is None else _cell(cell) for cell in line.by_target]
        table.add_row(name, *([_cell(line.pooled or PooledRate())] if pooled else []), *cells)
    return table


def _cell(rate: Rate | PooledRate) -> str:
    if rate.rate is None or rate.interval is None:
        return "0/0"
    low, high = rate.interval
    return f"[bold]{rate.rate:.0%}[/bold] {rate.count}/{rate.n}\n[dim]{100 * low:.0f}–{high:.0%}[/dim]"


def _count(gradients: int | None) -> str:
    return "?" if gradients is None else str(gradients)
