"""`gnp generate`."""

import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import app, console, since_when


@app.command()
def generate(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe; see jobs/recipes/.", show_default=False)],
    store: Annotated[str, typer.Option(help="Where results go: a folder, or s3://bucket/prefix.", show_default=False)],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images, for a trial.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Work on shards alone that were written since: 36h, 7d, or 2026-11-01T02:00 (UTC).", show_default=False
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster, such as `auto`; default: that of RAY_ADDRESS, or else one for this run."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also try again failed items and quarantined images.")
    ] = False,
    max_failed: Annotated[
        int, typer.Option(min=0, help="So many failed items (shards, or parts of them) still make exit code 0.")
    ] = 0,
    log: Annotated[
        Path | None,
        typer.Option(
            help="Add a line of JSON to this file (-: standard error) for each item that a worker is done with."
        ),
    ] = None,
) -> None:
    """Attacks the images of a recipe and scores how the result transfers.

    What the store already holds is not done again: a run that was cut off goes on where it stood, a new target,
    attack or source computes only what is new, and a second run of the same recipe does nothing. An item that fails
    three times is listed (`gnp status`) and passed over from then on, until its shard changes or --retry-failed is
    given. Two runs of one recipe at once share the work. SIGTERM or Ctrl-C ends a run within half a minute.

    Exit code: 0, everything is committed; 1, some items failed and are listed, or no image could be used; 2, the run
    could not start or go on; 130, it was stopped.

    Example: `gnp generate jobs/recipes/imagenet.toml --store s3://bucket/prefix --limit 100`
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # imports take seconds
    from jobs.runners.generate import run

    raise typer.Exit(
        run(
            recipe,
            store,
            console=console,
            limit=limit,
            since=0.0 if since is None else since_when(since, time.time()),
            address=address,
            retry_failed=retry_failed,
            max_failed=max_failed,
            log=log,
        )
    )
