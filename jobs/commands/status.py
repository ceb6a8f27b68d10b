"""`gnp status`: progress, runs and failures of the plans in a store."""

import sys
from typing import Annotated

import typer

from jobs.app import Store, app, console
from pipeline.ledger import open_ledger
from pipeline.ledger.quarantined import list_quarantined


@app.command()
def status(
    store: Store,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="List the images that could not be used, and why, instead.")
    ] = False,
) -> None:
    """Shows each recipe's progress in this store: parts done, runs at work, images per second, time left and failures.

    It reads only the store, so it works from any machine, during a run and after it.
    """
    ledger = open_ledger(store)
    if quarantined:
        for image in list_quarantined(ledger):
            sys.stdout.write(f"{image.dataset}/{image.shard}/{image.key}: {image.reason}\n")
    else:
        from jobs import tables
        from pipeline.maintenance.status import status as plan_statuses

        tables.print_status(plan_statuses(ledger), console=console)
