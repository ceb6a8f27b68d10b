"""`gnp ls`."""

import sys
from typing import Annotated, Literal

import typer

from jobs.app import Store, app
from pipeline.ledger import KINDS, opened


@app.command()
def ls(
    store: Store,
    kind: Annotated[
        Literal["original", "adversarial", "clean", "transfer"] | None,
        typer.Option(help="Only originals, adversarial shards, clean predictions, or transfer results."),
    ] = None,
) -> None:
    """Lists the committed shards (.tar) and results (.parquet), one address a line; orphans are not listed.

    `gnp ls STORE --kind transfer` is what to hand to DuckDB or Polars.
    """
    ledger = opened(store)
    # Printed when all are known: half a list would pass for the whole.
    kinds = KINDS if kind is None else (kind,)
    listed = [marker.object for each in kinds for marker in ledger.markers(sorted(ledger.units(each)))]
    sys.stdout.writelines(f"{ledger.storage.at(name)}\n" for name in listed)
