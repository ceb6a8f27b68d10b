"""`gnp generate`: attacks the images of a recipe and scores the results, on a Ray cluster."""

import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import Address, Recipe, RetryFailed, StoreOption, app, console, interrupt_on_sigterm, parse_since


@app.command()
def generate(
    recipe: Recipe,
    store: StoreOption,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images, for a trial.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only shards written since: 36h, 7d, or 2026-11-01T02:00 (UTC).", show_default=False),
    ] = None,
    address: Address = None,
    retry_failed: RetryFailed = False,
    max_failed: Annotated[
        int, typer.Option(min=0, help="The most failed items (shards, or parts of them) with exit code 0.")
    ] = 0,
    log: Annotated[
        Path | None,
        typer.Option(
            help="Append a line of JSON to this file (-: standard error) for every item that a worker has finished."
        ),
    ] = None,
) -> None:
    """Attacks the images of a recipe, and scores how the adversarial images transfer to the targets.

    Results that the store already has are not computed again: an interrupted run resumes, a new target, attack or
    source computes only what is new, and a second run of the same recipe does nothing. An item that fails three times
    (once, where its shard is damaged) is listed (`gnp status`) and skipped from then on, until its shard changes or
    --retry-failed is given. Two runs of
    one recipe at the same time share the work. SIGTERM or Ctrl-C stops a run within half a minute.

    Exit code: 0, everything is committed; 1, some items failed and are listed, or no image could be used; 2, the run
    could not start or continue; 130, it was stopped.

    Example: `gnp generate jobs/recipes/imagenet.toml --store s3://bucket/prefix --limit 100`
    """
    interrupt_on_sigterm()
    from jobs.runners.generate import run

    raise typer.Exit(
        run(
            recipe,
            store,
            console=console,
            limit=limit,
            since=0.0 if since is None else parse_since(since, time.time()),
            address=address,
            retry_failed=retry_failed,
            max_failed=max_failed,
            log=log,
        )
    )
