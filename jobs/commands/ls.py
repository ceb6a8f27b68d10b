"""`gnp ls`: addresses of the committed objects."""

import sys
from typing import Annotated, Literal

import typer

from jobs.app import Store, app
from pipeline.ledger import UNIT_KINDS, open_ledger


@app.command()
def ls(
    store: Store,
    kind: Annotated[
        Literal["original", "adversarial", "clean", "transfer"] | None,
        typer.Option(help="Only originals, adversarial shards, clean predictions, or transfer results."),
    ] = None,
) -> None:
    """Lists the committed shards (.tar) and results (.parquet), one address per line, without orphans.

    DuckDB and Polars read what `gnp ls STORE --kind transfer` lists.
    """
    ledger = open_ledger(store)
    kinds = UNIT_KINDS if kind is None else (kind,)
    # Printed only when complete: after an error, half a list would look like the whole.
    listed = [marker.object for name in kinds for marker in ledger.read_markers(sorted(ledger.list_units(name)))]
    sys.stdout.writelines(f"{ledger.storage.url_of(key)}\n" for key in listed)
