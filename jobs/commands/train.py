"""`gnp train`."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import app, console


@app.command()
def train(
    recipe: Annotated[
        Path, typer.Argument(help="A TOML recipe for training; see docs/training.md.", show_default=False)
    ],
    store: Annotated[
        str,
        typer.Option(help="Where weights, figures and states go: a folder, or s3://bucket/prefix.", show_default=False),
    ],
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster, such as `auto`; default: that of RAY_ADDRESS, or else one for this run."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
) -> None:
    """Trains a model on clean and stored adversarial images, and measures what it gained.

    What is read are finalized stores (`gnp finalize`), each in one version from beginning to end. A run that was cut
    off, or told to stop by SIGTERM or Ctrl-C, goes on from the last state that was kept, with the images that come
    next; a second run of the same recipe does nothing, until a store has another version.

    Exit code: 0, trained, now or before; 2, training could not start or go on; 130, it was stopped.

    Example: `gnp train training.toml --store s3://bucket/prefix`
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from jobs.runners.train import run

    raise typer.Exit(run(recipe, store, console=console, address=address, seed=seed))
