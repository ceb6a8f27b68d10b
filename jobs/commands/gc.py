"""`gnp gc`: lists or deletes objects of a store that nothing needs."""

import sys
from typing import Annotated

import typer

from jobs.app import Store, app
from pipeline.ledger import open_ledger


@app.command()
def gc(
    store: Store,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is found; without this, it is only listed.")
    ] = False,
    older_than: Annotated[float, typer.Option(min=0, help="Hours; younger objects may belong to a run at work.")] = 24,
    keep_versions: Annotated[
        int | None, typer.Option(min=1, help="Also collect all versions except the last N; by default, all are kept.")
    ] = None,
) -> None:
    """Lists or deletes garbage: data without a marker, claims of dead runs, unfinished uploads, old versions.

    Objects that a marker names are never deleted, and nothing is deleted while a run is at work. The latest version is
    kept, and so are versions that a training run kept in this store has read; objects that only a deleted version named
    are collected the next time.
    """
    from pipeline.maintenance.garbage import find, remove

    ledger, age_s = open_ledger(store), 3600 * older_than
    found = find(ledger, age_s=age_s, keep_versions=keep_versions)
    for item in found:
        sys.stdout.write(f"{item.key}: {item.reason} ({item.size_bytes:,} bytes)\n")
    size = sum(item.size_bytes for item in found)
    if delete:
        removed = remove(ledger, found, age_s=age_s, keep_versions=keep_versions)
        sys.stdout.write(f"{removed} of {len(found)} removed\n")
    else:
        sys.stdout.write(f"{len(found)} things, {size:,} bytes; --delete removes them\n")
