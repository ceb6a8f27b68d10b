"""`gnp gc`."""

import sys
from typing import Annotated

import typer

from jobs.app import Store, app
from pipeline.ledger import opened


@app.command()
def gc(
    store: Store,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this, it is only listed.")] = False,
    older_than: Annotated[float, typer.Option(min=0, help="Hours; what is younger may be somebody's at work.")] = 24,
    keep_versions: Annotated[
        int | None, typer.Option(min=1, help="Also finished versions but for the last so many; by default, all stay.")
    ] = None,
) -> None:
    """Lists, or removes, what is of no use: data without a marker, claims of dead runs, unfinished uploads, versions.

    Nothing that a marker names is ever touched, and nothing is removed while a run is at work. Of versions, the latest
    stays, and those that training which is kept in this store has read; what only a removed version named goes the
    next time.
    """
    from pipeline.maintenance.garbage import find, remove

    ledger, age_s = opened(store), 3600 * older_than
    found = find(ledger, age_s=age_s, keep_versions=keep_versions)
    for item in found:
        sys.stdout.write(f"{item.key}: {item.why} ({item.size_bytes:,} bytes)\n")
    size = sum(item.size_bytes for item in found)
    if delete:
        removed = remove(ledger, found, age_s=age_s, keep_versions=keep_versions)
        sys.stdout.write(f"{removed} of {len(found)} removed\n")
    else:
        sys.stdout.write(f"{len(found)} things, {size:,} bytes; --delete removes them\n")
