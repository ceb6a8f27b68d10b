"""`gnp curvature`."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.app import app, console, folder_at


@app.command()
def curvature(
    recipe: Annotated[Path, typer.Argument(help="Its sources, data, targets and first budget.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the figures, one a source, and curvature.json.")] = Path("."),
    limit: Annotated[int, typer.Option(min=1, help="Only the first N images.")] = 100,
) -> None:
    """Holds each form of the penalty against the true Hessian-vector product, over its length and precision.

    For each source: forward, backward and central difference and the exact product, in the precisions that this machine
    has, by cosine and relative error to the product in float64; and what MI-FGSM with each achieves on the targets.
    It decides which form may run in which precision. On this machine alone, without Ray; a GPU is used if there is one.

    Example: `gnp curvature jobs/recipes/demo.toml --out build/curvature`
    """
    from jobs.runners.curvature import run

    run(recipe, folder_at(out), limit=limit, console=console)
