"""`gnp status`."""

import sys
from typing import Annotated

import typer

from jobs.app import Store, app, console
from pipeline.ledger import opened


@app.command()
def status(
    store: Store,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="List every image that could not be used instead, and why.")
    ] = False,
) -> None:
    """Says how far each recipe that was run here is, who is at it, how fast, and what failed.

    It reads the store alone, so it answers while a run goes on elsewhere as well as after.
    """
    ledger = opened(store)
    if quarantined:
        from pipeline.plan import quarantine

        for image in quarantine.listed(ledger):
            sys.stdout.write(f"{image.dataset}/{image.shard}/{image.key}: {image.reason}\n")
    else:
        from jobs import tables
        from pipeline.maintenance.status import status as look

        tables.show_status(look(ledger), console=console)
