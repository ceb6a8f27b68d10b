"""`gnp plan`: what a recipe will take, before it is run."""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.app import app, console

if TYPE_CHECKING:
    from pipeline.estimate import Estimate


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe; see jobs/recipes/.", show_default=False)],
    store: Annotated[str, typer.Option(help="Where results go, or would.", show_default=False)],
    generators: Annotated[int, typer.Option(min=1, help="How many workers will attack.")] = 1,
    scorers: Annotated[int, typer.Option(min=1, help="How many will score.")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="Of an hour of one worker, in your money.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Says what a recipe will take: images, gradients, hours, bytes, and what of it is already done.

    Hours and bytes are what the store's own parts took, on the device that made them; where there are none yet, do a
    trial of the recipe (`gnp generate --limit 100`) into the same store on the machines that will do the work. A
    trial's images are a dataset of their own there.

    Example: `gnp plan jobs/recipes/imagenet.toml --store s3://bucket/prefix --generators 16 --scorers 4 --price 1.20`
    """
    from pipeline import config
    from pipeline.estimate import estimate
    from pipeline.ledger import Ledger
    from pipeline.plan import resolve
    from pipeline.storage import Storage

    job = config.load(recipe).job()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Storage(store if "://" in store or Path(store).exists() else folder))
        # Where a run has written, a tag means the weights that it kept there; else they are kept nowhere.
        found = estimate(resolve(job, ledger.storage if ledger.plans() else Storage(folder)), ledger)
    if as_json:
        said = {**asdict(found), "hours": {stage: found.hours(stage) for stage in ("generator", "scorer")}}
        sys.stdout.write(json.dumps({**said, "bytes_left": found.bytes_left}, indent=1) + "\n")
        return
    _show(found)
    for line in _closing(found, generators, scorers, price):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show(found: "Estimate") -> None:
    from rich.table import Table

    known = f", {found.shards_known} of them counted" if found.shards_known < found.shards else ""
    table = Table(title=f"{found.images:,} images in {found.shards:,} shards{known} ({_bytes(found.input_bytes)})")
    for column in ("", "done", "left", "gradients", "s an image", "worker-hours", "to store", "measured on"):
        table.add_column(column, justify="left" if column in ("", "measured on") else "right")
    for work in found.works:
        table.add_row(
            work.name,
            f"{work.done:,}",
            f"{work.left:,}",
            f"{work.gradients * work.left:,}" if work.gradients else "",
            "–" if work.seconds is None else f"{work.seconds:.3g}",
            "–" if work.hours is None else f"{work.hours:,.2f}",
            "–" if work.bytes_left is None else _bytes(work.bytes_left),
            work.device,
        )
    console.print(table)


def _closing(found: "Estimate", generators: int, scorers: int, price: float | None) -> list[str]:
    left = sum(work.left for work in found.works)
    if not left:
        return ["nothing to do: the store holds everything that this recipe makes"]
    objects = sum(work.objects for work in found.works)
    stored = "" if found.bytes_left is None else f", {_bytes(found.bytes_left)}"
    lines = [f"to come: {objects:,} objects and as many markers{stored}"]
    hours = found.hours("generator"), found.hours("scorer")
    if hours[0] is None or hours[1] is None:
        return [*lines, "no time: not all of this was measured here yet; do a trial with gnp generate --limit 100"]
    spent = max(hours[0] / generators, hours[1] / scorers)
    cost = "" if price is None else f", {price * (hours[0] + hours[1]):,.2f} at {price:g} an hour of a worker"
    busier = "generators" if hours[0] / generators > hours[1] / scorers else "scorers"
    return [
        *lines,
        f"{hours[0]:,.2f} hours of generators, {hours[1]:,.2f} of scorers{cost}",
        f"{spent:,.2f} hours with {generators} generators and {scorers} scorers; the {busier} are what it waits for",
    ]


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} PB"
