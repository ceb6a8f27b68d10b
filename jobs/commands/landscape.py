"""`gnp landscape`: the loss around stored adversarial images."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.app import app, console, create_folder
from pipeline.ledger import open_ledger


@app.command()
def landscape(
    recipe: Annotated[Path, typer.Argument(help="The recipe of the run that filled the store.", show_default=False)],
    store: Annotated[
        str, typer.Option(help="Store with the results: a folder, or s3://bucket/prefix.", show_default=False)
    ],
    attack: Annotated[
        list[str] | None, typer.Option(help="Name of an attack; may be repeated. Default: all of the recipe.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures, one per source, and landscape.json.")] = Path("."),
    limit: Annotated[int, typer.Option(min=1, help="Only the first N images of each attack.")] = 100,
) -> None:
    """Measures how flat the loss is around stored adversarial images, and whether flatness correlates with transfer.

    For each attack, on the source and every target without a defense: the norm of the gradient, the sharpness, the loss
    along a random direction and along the source's gradient, and the share of the perturbation that is needed; then
    rank correlations of flatness on the source with flatness and success on each target. Runs on this machine without
    Ray.

    Example: `gnp landscape jobs/recipes/demo.toml --store build/demo/store --attack mi --attack gnp-backward+mi`
    """
    from jobs.runners.landscape import run

    run(recipe, open_ledger(store), create_folder(out), names=attack or [], limit=limit, console=console)
