"""`gnp curvature`: how well each form of the penalty approximates the Hessian-vector product."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.app import app, console, create_folder


@app.command()
def curvature(
    recipe: Annotated[
        Path,
        typer.Argument(help="The recipe whose sources, data, targets and first budget are used.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the figures, one per source, and curvature.json.")] = Path("."),
    limit: Annotated[int, typer.Option(min=1, help="Only the first N images.")] = 100,
) -> None:
    """Compares each form of the penalty with the true Hessian-vector product, over step lengths and precisions.

    For each source: cosine and relative error of the forward, backward and central difference and of the exact product,
    in this machine's precisions, against the product in float64; and the success of MI-FGSM with each form on targets.
    The results decide which form may run in which precision. Runs on this machine without Ray, on a GPU if it has one.

    Example: `gnp curvature jobs/recipes/demo.toml --out build/curvature`
    """
    from jobs.runners.curvature import run

    run(recipe, create_folder(out), limit=limit, console=console)
