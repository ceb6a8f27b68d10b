"""`gnp landscape`."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.app import app, console, folder_at
from pipeline.ledger import opened


@app.command()
def landscape(
    recipe: Annotated[Path, typer.Argument(help="What the store was filled by.", show_default=False)],
    store: Annotated[str, typer.Option(help="Where results lie: a folder, or s3://bucket/prefix.", show_default=False)],
    attack: Annotated[
        list[str] | None, typer.Option(help="Name of an attack; again for each. Default: all of the recipe.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures, one a source, and landscape.json.")] = Path("."),
    limit: Annotated[int, typer.Option(min=1, help="Only the first N images of each attack.")] = 100,
) -> None:
    """Looks at the loss around stored adversarial images: are they in a flat region, and does that go with transfer?

    For each attack, on the source and every plain target: the gradient's norm, sharpness, the loss along a random
    direction and along the source's gradient, and how much of the perturbation it takes; then rank correlations of
    flatness on the source with flatness and success on each target. On this machine alone, without Ray.

    Example: `gnp landscape jobs/recipes/demo.toml --store build/demo/store --attack mi --attack gnp-backward+mi`
    """
    from jobs.runners.landscape import run

    run(recipe, opened(store), folder_at(out), names=attack or [], limit=limit, console=console)
