"""`gnp plan`: forecast of the time, storage and cost of a recipe."""

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.app import Recipe, StoreOption, app, console, parse_since
from jobs.output import counted, print_line

if TYPE_CHECKING:
    from pipeline.plan.forecast import Forecast


@app.command()
def plan(
    recipe: Recipe,
    store: StoreOption,
    generators: Annotated[int, typer.Option(min=1, help="Number of workers that attack.")] = 1,
    scorers: Annotated[int, typer.Option(min=1, help="Number of workers that score.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images; see `gnp generate`.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only shards written since; see `gnp generate`.", show_default=False)
    ] = None,
    rates_from: Annotated[
        str | None,
        typer.Option(help="Another store, of a trial, whose results give the rates.", show_default=False),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e6, help="Price of an hour of one worker, in any currency.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Forecasts what a recipe takes: images, gradients, hours and bytes, and how much of it is already done.

    Hours and bytes are extrapolated from the parts in the store, on the device that made them. If there are none yet,
    run a trial of the recipe into another store, on the machines that will do the work, and give that store as well:

    `gnp generate RECIPE --store s3://bucket/trial --limit 100`

    `gnp plan RECIPE --store s3://bucket/prefix --rates-from s3://bucket/trial --generators 16 --scorers 4 --price 1.20`
    """
    from pipeline.ledger import Ledger
    from pipeline.plan.forecast import forecast_plan
    from pipeline.plan.recipe_reader import load_recipe
    from pipeline.plan.resolve import resolve_job
    from pipeline.storage import Storage

    job = load_recipe(recipe).job(limit=limit)
    begin = parse_since(since, time.time()) if since else 0.0
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Storage(store if "://" in store or Path(store).exists() else folder))
        has_runs = bool(ledger.plan_keys())
        # A store with runs pins the weights of each model tag; otherwise they are pinned in a temporary folder.
        planned = resolve_job(job, ledger.storage if has_runs else Storage(folder), since=begin)
        forecast = forecast_plan(planned, ledger, rates=Ledger(Storage(rates_from)) if rates_from else None)
    if as_json:
        values = {**asdict(forecast), "hours": {stage: forecast.hours(stage) for stage in ("generator", "scorer")}}
        values |= {"unmeasured": forecast.unmeasured, "bytes_left": forecast.bytes_left}
        sys.stdout.write(json.dumps(values, indent=1) + "\n")
        return
    if not has_runs:
        print_line(console, f"{store}: no run has written here yet")
    _print_table(forecast)
    for line in _summary(forecast, generators, scorers, price, since=bool(since)):
        print_line(console, line)


def _print_table(forecast: "Forecast") -> None:
    from rich.table import Table

    known = f", {forecast.shards_known} of them counted" if forecast.shards_known < forecast.shards else ""
    shards = f"{counted(forecast.shards, 'shard')}{known} ({_bytes(forecast.input_bytes)})"
    table = Table(title=f"{counted(forecast.images, 'image')} in {shards}")
    for column in ("", "done", "left", "gradients", "s per image", "one worker", "to store", "measured on"):
        table.add_column(column, justify="left" if column in ("", "measured on") else "right")
    for work in forecast.works:
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


def _summary(forecast: "Forecast", generators: int, scorers: int, price: float | None, *, since: bool) -> list[str]:
    """Lines below the table: what is left to write, what is not measured, hours and price."""
    left = sum(work.left for work in forecast.works)
    if not forecast.shards:
        return ["nothing to do: none of the recipe's shards was written in that time"]
    if not left:
        shards = " from these shards" if since else ""
        return [f"nothing to do: the store has everything that this recipe makes{shards}"]
    objects = sum(work.objects for work in forecast.works)
    size = "" if forecast.bytes_left is None else f", {_bytes(forecast.bytes_left)}"
    lines = [f"left to write: {objects:,} objects and as many markers{size}"]
    if forecast.unmeasured:
        lines.append(
            f"times do not include {', '.join(forecast.unmeasured)}, not measured yet; to measure, run a trial, "
            "gnp generate --limit 100, into another store, and give it as --rates-from"
        )
    return lines + _hours(forecast, generators, scorers, price)


def _hours(forecast: "Forecast", generators: int, scorers: int, price: float | None) -> list[str]:
    generating = forecast.hours("generator")
    scoring = forecast.hours("scorer")
    if not generating + scoring:
        return []
    slower = "generators" if generating / generators > scoring / scorers else "scorers"
    hours = max(generating / generators, scoring / scorers)
    lines = [
        f"worker time: {_time(generating)} of generators and {_time(scoring)} of scorers (predictions only)",
        f"{_time(hours)} with {counted(generators, 'generator')} and {counted(scorers, 'scorer')}; the {slower} take "
        "longer",
    ]
    if price is not None:
        busy = price * (generating + scoring)
        reserved = price * hours * (generators + scorers)
        lines.append(
            f"{busy:,.2f} at {price:g} per hour of a worker, if workers are paid only while they are busy; "
            f"{reserved:,.2f} if all are kept until the end"
        )
    return lines


def _time(hours: float) -> str:
    seconds = 3600 * hours
    return f"{seconds:.3g} s" if seconds < 100 else f"{hours * 60:.3g} min" if hours < 2 else f"{hours:,.1f} h"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} PB"
