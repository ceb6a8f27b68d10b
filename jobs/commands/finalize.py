"""`gnp finalize`."""

import sys
from typing import Annotated

import typer

from jobs.app import Store, app
from pipeline.ledger import opened


@app.command()
def finalize(
    store: Store,
    partial: Annotated[bool, typer.Option("--partial", help="Also where something is still missing.")] = False,
) -> None:
    """Makes a version that readers take whole: compacted Parquet, a manifest with hashes, timm's `_info.json`, a card.

    It lies in versions/ID, and `latest.json` says which is the latest. The same store gives the same version.
    """
    from pipeline.maintenance.finalize import finalize as make

    ledger = opened(store)
    version = make(ledger, partial=partial)
    missing = f", {version.missing} MISSING" if version.missing else ""
    sys.stdout.write(
        f"{ledger.storage.at(version.key)}: {version.images} adversarial images, {version.rows} rows, "
        f"{version.objects} objects{missing}\n"
    )
