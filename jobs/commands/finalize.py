"""`gnp finalize`: writes an immutable version of the dataset for readers."""

import sys
from typing import Annotated

import typer

from jobs.app import Store, app
from pipeline.ledger import open_ledger


@app.command()
def finalize(
    store: Store,
    partial: Annotated[bool, typer.Option("--partial", help="Make a version even though results are missing.")] = False,
) -> None:
    """Makes an immutable version of the dataset: compacted Parquet, a manifest of hashes, timm's `_info.json`, a card.

    It is written to versions/ID, and `latest.json` names the latest version. The same store gives the same version.
    """
    from pipeline.maintenance.finalize import finalize as make

    ledger = open_ledger(store)
    version = make(ledger, partial=partial)
    missing = f", {version.missing} MISSING" if version.missing else ""
    sys.stdout.write(
        f"{ledger.storage.url_of(version.folder)}: {version.images} adversarial images, {version.rows} rows, "
        f"{version.objects} objects{missing}\n"
    )
