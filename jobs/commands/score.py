"""`gnp score`: scores adversarial images of another tool on a recipe's targets."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.app import Address, RetryFailed, StoreOption, app, console, interrupt_on_sigterm


@app.command()
def score(
    folder: Annotated[
        str,
        typer.Argument(
            help="Adversarial images, in folders or not: a folder, or s3://bucket/prefix.", show_default=False
        ),
    ],
    recipe: Annotated[
        Path,
        typer.Argument(
            help="The recipe with the originals (data) and the targets; its attacks are not run.", show_default=False
        ),
    ],
    store: StoreOption,
    name: Annotated[str, typer.Option(help="Name of the attack in the results.", show_default=False)],
    source: Annotated[str, typer.Option(help="Name of the attacked model in the results.")] = "unknown",
    epsilon: Annotated[str, typer.Option(help="Budget of the attack; images outside it are refused.")] = "16/255",
    norm: Annotated[Literal["linf", "l2"], typer.Option(help="Norm of the budget.")] = "linf",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images of the recipe.")] = None,
    address: Address = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Scores adversarial images of another tool on a recipe's targets, into the same store and reports.

    Images are matched to the originals by name: `0001.png` is the image with key `0001`, and `cat/1.png` the one that
    `gnp shards` packed from such a path; else the end of a path counts, where only one image has it. Each must lie
    within epsilon of its original. If the folder has a `labels.csv` (filename,label), its labels must be those of the
    originals. `gnp compare` compares them with other attacks on the
    same images.

    Example: `gnp score adv/mifgsm jobs/recipes/imagenet.toml --store results --name their-mi --source resnet50`
    """
    interrupt_on_sigterm()
    from jobs.runners.score import ExternalFolder, run

    raise typer.Exit(
        run(
            ExternalFolder(folder, name, source, epsilon, norm),
            recipe,
            store,
            console=console,
            limit=limit,
            address=address,
            retry_failed=retry_failed,
        )
    )
