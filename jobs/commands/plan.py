"""`gnp plan`: what a recipe will take, before it is run."""

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.app import app, console, since_when

if TYPE_CHECKING:
    from pipeline.plan.forecast import Estimate


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe; see jobs/recipes/.", show_default=False)],
    store: Annotated[str, typer.Option(help="Where results go, or would.", show_default=False)],
    generators: Annotated[int, typer.Option(min=1, help="How many workers will attack.")] = 1,
    scorers: Annotated[int, typer.Option(min=1, help="How many will score.")] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take the first so many samples only, as gnp generate does.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only shards written since: 36h, 7d or a time.", show_default=False)
    ] = None,
    rates_from: Annotated[
        str | None,
        typer.Option(help="Another store, which says how long work takes: a trial's.", show_default=False),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e6, help="Of an hour of one worker, in your money.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Says what a recipe will take: images, gradients, hours, bytes, and what of it is already done.

    Hours and bytes are what the store's own parts took, on the device that made them; where there are none yet, do a
    trial of the recipe into a store of its own, on the machines that will do the work, and name that one, too:

    `gnp generate RECIPE --store s3://bucket/trial --limit 100`

    `gnp plan RECIPE --store s3://bucket/prefix --rates-from s3://bucket/trial --generators 16 --scorers 4 --price 1.20`
    """
    from pipeline.ledger import Ledger
    from pipeline.plan import recipe as config
    from pipeline.plan.forecast import estimate
    from pipeline.plan.resolve import resolve
    from pipeline.storage import Storage

    job, begin = config.load(recipe).job(limit=limit), since_when(since, time.time()) if since else 0.0
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Storage(store if "://" in store or Path(store).exists() else folder))
        begun = bool(ledger.plans())
        # Where a run has written, a tag means the weights that it kept there; else they are kept nowhere.
        planned = resolve(job, ledger.storage if begun else Storage(folder), since=begin)
        found = estimate(planned, ledger, rates=Ledger(Storage(rates_from)) if rates_from else None)
    if as_json:
        said = {**asdict(found), "hours": {stage: found.hours(stage) for stage in ("generator", "scorer")}}
        said |= {"unmeasured": found.unmeasured, "bytes_left": found.bytes_left}
        sys.stdout.write(json.dumps(said, indent=1) + "\n")
        return
    if not begun:
        console.print(f"{store}: no run has written here yet", markup=False, highlight=False, soft_wrap=True)
    _show(found)
    for line in _closing(found, generators, scorers, price, since=bool(since)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show(found: "Estimate") -> None:
    from rich.table import Table

    counted = f", {found.shards_known} of them counted" if found.shards_known < found.shards else ""
    shards = f"{_number(found.shards, 'shard')}{counted} ({_bytes(found.input_bytes)})"
    table = Table(title=f"{_number(found.images, 'image')} in {shards}")
    for column in ("", "done", "left", "gradients", "s an image", "one worker's", "to store", "measured on"):
        table.add_column(column, justify="left" if column in ("", "measured on") else "right")
    for work in found.works:
        table.add_row(
            work.name,
            f"{work.done:,}",
            f"{work.left:,}",
            f"{work.gradients * work.left:,}" if work.gradients else "",
            "–" if work.seconds is None else f"{work.seconds:.3g}",
            "–" if work.hours is None else _time(work.hours),
            "–" if work.bytes_left is None else _bytes(work.bytes_left),
            work.device,
        )
    console.print(table)


def _closing(found: "Estimate", generators: int, scorers: int, price: float | None, *, since: bool) -> list[str]:
    left = sum(work.left for work in found.works)
    if not found.shards:
        return ["nothing to do: none of the recipe's shards was written in that time"]
    if not left and since:
        return ["nothing to do: the store holds everything that this recipe makes of these shards"]
    if not left:
        return ["nothing to do: the store holds everything that this recipe makes"]
    objects = sum(work.objects for work in found.works)
    stored = "" if found.bytes_left is None else f", {_bytes(found.bytes_left)}"
    lines = [f"to come: {objects:,} objects and as many markers{stored}"]
    if found.unmeasured:
        lines.append(
            f"without the time for what was not measured yet: {', '.join(found.unmeasured)}; a trial measures it: "
            "gnp generate --limit 100 into another store, which --rates-from then names"
        )
    generating, scoring = found.hours("generator"), found.hours("scorer")
    if not generating + scoring:
        return lines
    spent, busy = max(generating / generators, scoring / scorers), generating + scoring
    last = "generators" if generating / generators > scoring / scorers else "scorers"
    lines += [
        f"of one worker: {_time(generating)} of a generator and {_time(scoring)} of a scorer's answers",
        f"{_time(spent)} with {_number(generators, 'generator')} and {_number(scorers, 'scorer')}, of which the {last} "
        "take longest",
    ]
    if price is not None:
        held = spent * (generators + scorers)
        lines.append(
            f"{price * busy:,.2f} at {price:g} an hour of a worker, for what they are busy; {price * held:,.2f} if all "
            "are kept until the end"
        )
    return lines


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _time(hours: float) -> str:
    seconds = 3600 * hours
    return f"{seconds:.3g} s" if seconds < 100 else f"{hours * 60:.3g} min" if hours < 2 else f"{hours:,.1f} h"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} PB"
