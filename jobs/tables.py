"""What a report looks like on a terminal."""

from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from pipeline.analysis.compare import Compared, Comparison, Together
from pipeline.analysis.report import Report, budget, matrix
from pipeline.maintenance.status import PlanStatus
from pipeline.results.intervals import PooledRate, Rate
from pipeline.results.predictions import COUNTED, Denominator

if TYPE_CHECKING:  # it draws: a look at a store does not wait for that
    from pipeline.analysis.ablation import Point
    from pipeline.analysis.picture import Said, Word
    from pipeline.dataset.store import Sample


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
    show_missing((report.missing_shards, report.missing_results), console=console)


def show_missing(missing: tuple[int, int], *, console: Console) -> None:
    """Says what a table lacks: shards and results that plans name."""
    if any(missing):
        shards, results = missing
        console.print(
            f"incomplete: {shards} shards and {results} results that runs set out to make are missing; gnp verify "
            "names them"
        )


def show_status(plans: list[PlanStatus], *, console: Console) -> None:
    """Prints a few lines a plan: how far, who, how fast, what failed."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for plan in plans:
        counts = plan.progress
        unread = counts.shards - counts.shards_known
        say(f"plan {plan.id} of {plan.dataset}: {'complete' if plan.complete else 'incomplete'}")
        say(
            f"  attacked {counts.attacked}/{counts.to_attack} parts, scored {counts.scored}/{counts.to_score} files"
            + (f"; {unread} of {counts.shards} shards are not begun and not counted" if unread else "")
        )
        for run in plan.runs[:5]:
            said = run.record
            state = said["state"] if run.live or said["state"] != "running" else "died, or lost its store"
            say(
                f"  run {run.id} on {said['host']}: {state}, heard of {run.age_s:.0f} s ago; {said['images']} images "
                f"attacked in {said['seconds']:.0f} s, {said['items_left']} of {said['items']} items left"
            )
        if plan.images_per_s is not None:
            left = "" if plan.left_s is None else f", about {timedelta(seconds=round(plan.left_s))} left"
            say(f"  {plan.images_per_s:.2f} images/s{left}")
        for failure in plan.failures:
            say(f"  failed after {failure.tries} tries: {failure.item}: {failure.reason}")


def show_sample(sample: "Sample", said: "list[Said]", *, console: Console) -> None:
    """Prints what targets say of one sample, clean and under each attack: the class, and the label's probability."""

    def cell(word: "Word") -> str:
        return f"{escape(word.told(sample.class_name))}\n[dim]{word.probability:.2f}[/dim]"

    table = Table(
        title=escape(f"{sample.shard}/{sample.key}: {sample.class_name(sample.label)}"),
        caption="what each target names, and below it the probability that it gives the label",
        title_justify="left",
        caption_justify="left",
    )
    answers = {answer.target_id: answer for each in said for answer in each.answers}
    table.add_column("source → attack", overflow="fold")
    for answer in answers.values():
        table.add_column(escape(answer.target), overflow="fold")
    clean = [cell(each.before) for each in answers.values()]
    table.add_row("clean", *clean, end_section=True)
    for each in said:
        own = {answer.target_id: cell(answer.after) for answer in each.answers}
        table.add_row(
            f"{escape(each.source)} →\n[bold]{escape(each.attack)}[/bold]",
            *(own.get(target, "–") for target in answers),
        )
    console.print(table)


def show_comparisons(compared: Compared, *, denominator: Denominator, console: Console) -> None:
    """Prints a table per source and budget, attacks down, targets across; then one per budget over all sources."""
    caption = (
        f"points gained over the base on {COUNTED[denominator]}, 95% interval, McNemar's p (of {len(compared.each)} "
        "comparisons, not adjusted for their number); gradients an image in brackets. Of several models together, "
        "images times models are counted, and the interval is over images"
    )
    alike: dict[tuple[str, str, str], list[Comparison]] = {}
    for row in compared.each:
        alike.setdefault((row.dataset, row.ids[0], budget(row.epsilon, row.norm)), []).append(row)
    together = {(row.dataset, row.ids): row for row in compared.together}
    for (dataset, source, epsilon), some in alike.items():
        targets = {row.ids[3]: row.target for row in some}
        table = _comparisons(
            f"{dataset}, from {some[0].source}, ε = {epsilon}", caption, ["all others", *targets.values()]
        )
        lines: dict[tuple[str, str], dict[str, Comparison]] = {}
        for row in some:
            lines.setdefault((row.ids[1], row.ids[2]), {})[row.ids[3]] = row
        for (attack, base), found in lines.items():
            cells = [together.get((dataset, (source, attack, base))), *map(found.get, targets)]
            table.add_row(_versus(next(iter(found.values()))), *map(_gained, cells))
        console.print(table)
    whole: dict[tuple[str, str], list[Together]] = {}
    for one in compared.together:
        if not one.ids[0]:
            whole.setdefault((one.dataset, budget(one.epsilon, one.norm)), []).append(one)
    for (dataset, epsilon), sums in whole.items():
        table = _comparisons(f"{dataset}, from every source, ε = {epsilon}", caption, ["source × target", "all others"])
        for one in sums:
            table.add_row(_versus(one), str(one.models), _gained(one))
        console.print(table)


def _comparisons(title: str, caption: str, columns: list[str]) -> Table:
    table = Table(title=escape(title), caption=caption, title_justify="left", caption_justify="left")
    table.add_column("attack, against", overflow="fold")
    for column in columns:
        table.add_column(escape(column), justify="right", overflow="fold")
    return table


def _versus(row: Comparison | Together) -> str:
    attack, base = f"{escape(row.attack)}[/bold] ({_count(row.gradients)})", escape(row.base)
    return f"[bold]{attack}\n{base} ({_count(row.base_gradients)})"


def show_grid(grid: "list[Point]", axes: list[str], *, denominator: Denominator, console: Console) -> None:
    """Prints a line for each point of a grid, the strongest last."""
    table = Table(
        caption=f"success over {COUNTED[denominator]}: rate, count/denominator, 95% interval; transfer counts "
        "images times targets, and its interval is over images",
        caption_justify="left",
    )
    for name in ("source", *axes, "on the source", "transfer"):
        table.add_column(name, justify="right", overflow="fold")
    for point in sorted(grid, key=lambda point: point.transfer.rate or 0.0):
        settings = [escape(str(point.settings.get(name, "–"))) for name in axes]
        table.add_row(escape(point.source), *settings, _cell(point.white_box), _cell(point.transfer))
    console.print(table)


def _gained(row: Comparison | Together | None) -> str:
    if row is None:
        return "–"
    if isinstance(row, Together):
        gain, n, interval, chance = row.gain.rate, row.gain.n, row.gain.interval, ""
    else:
        gain, n, interval, chance = row.gain, row.n, row.interval, f", p = {row.p_value:.2g}"
    if gain is None or interval is None:
        return "0/0"
    low, high = (f"{round(100 * bound):+d}" for bound in interval)
    return f"[bold]{round(100 * gain):+d}[/bold] of {n}\n[dim]{low} … {high}{chance}[/dim]"


def _table(report: Report, dataset: str, denominator: Denominator) -> Table:
    images, (targets, lines) = report.images[dataset], matrix(report, dataset, denominator)
    others = any(line.others is not None for line in lines)
    counted = f"{images['n_ok']} images" + (
        f", {images['n_quarantined']} quarantined" if images["n_quarantined"] else ""
    )
    table = Table(
        title=escape(f"{dataset}: {counted}"),
        caption=f"success over {COUNTED[denominator]}: rate, count/denominator, 95% interval"
        + ("; all others but the source: images times targets, the interval over images" if others else ""),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("source → attack, ε", overflow="fold")
    if others:
        table.add_column("all others", justify="right", overflow="fold")
    for target in targets:
        table.add_column(f"{escape(target.target)}\n[dim]{target.policy}[/dim]", justify="right", overflow="fold")
    blank = ["–"] if others else []
    table.add_row("clean accuracy", *blank, *(_cell(target.correct) for target in targets), end_section=True)
    for line in lines:
        name = f"{escape(line.first.source)} →\n[bold]{escape(line.first.attack)}[/bold], {line.first.budget}"
        cells = ["–" if cell is None else _cell(cell) for cell in line.cells]
        table.add_row(name, *([_cell(line.others or PooledRate())] if others else []), *cells)
    return table


def _cell(rate: Rate | PooledRate) -> str:
    if rate.rate is None or rate.interval is None:
        return "0/0"
    low, high = rate.interval
    return f"[bold]{rate.rate:.0%}[/bold] {rate.count}/{rate.n}\n[dim]{100 * low:.0f}–{high:.0%}[/dim]"


def _count(gradients: int | None) -> str:
    return "?" if gradients is None else str(gradients)
