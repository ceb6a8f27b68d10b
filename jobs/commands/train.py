"""`gnp train`: adversarial training on the images of finalized stores."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.app import Address, app, console, interrupt_on_sigterm


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML training recipe; see docs/training.md.", show_default=False)],
    store: Annotated[
        str,
        typer.Option(
            help="Store for weights, figures and training states: a folder, or s3://bucket/prefix.", show_default=False
        ),
    ],
    address: Address = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed, instead of the recipe's.")] = None,
) -> None:
    """Trains a model on clean and stored adversarial images, and measures the accuracy that it gains.

    It reads finalized stores (`gnp finalize`), each in one version from beginning to end. A run that was interrupted,
    or stopped by SIGTERM or Ctrl-C, resumes from the last saved state, at the next image; a second run of the same
    recipe does nothing, until a store has another version.

    Exit code: 0, trained, now or before; 2, training could not start or continue; 130, it was stopped.

    Example: `gnp train training.toml --store s3://bucket/prefix`
    """
    interrupt_on_sigterm()
    from jobs.runners.train import run

    raise typer.Exit(run(recipe, store, console=console, address=address, seed=seed))
