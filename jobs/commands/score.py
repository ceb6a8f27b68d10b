"""`gnp score`."""

import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.app import app, console


@app.command()
def score(
    folder: Annotated[
        str,
        typer.Argument(help="Adversarial PNGs: a folder, or s3://bucket/prefix, of flat names.", show_default=False),
    ],
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Its data are the originals, its targets are scored; its attacks are not run.", show_default=False
        ),
    ],
    store: Annotated[str, typer.Option(help="Where results go: a folder, or s3://bucket/prefix.", show_default=False)],
    name: Annotated[str, typer.Option(help="What results call the attack.", show_default=False)],
    source: Annotated[str, typer.Option(help="What results call the model that was attacked.")] = "unknown",
    epsilon: Annotated[
        str, typer.Option(help="The budget that they were made with; an image outside is refused.")
    ] = "16/255",
    norm: Annotated[Literal["linf", "l2"], typer.Option(help="Of the budget.")] = "linf",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images of the recipe.")] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster; see `gnp generate`.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also try again failed items.")] = False,
) -> None:
    """Scores adversarial images that another tool made, on a recipe's targets, into the same store and reports.

    Images are matched to the recipe's by name: `0001.png` is the image with key `0001`, as `gnp shards` names them when
    it packs the originals. Each is measured against its original, and none may lie outside epsilon. A `labels.csv`
    beside them (filename,label) is held against the originals' labels. `gnp compare` sets them beside other attacks on
    the same images.

    Example: `gnp score adv/mifgsm jobs/recipes/imagenet.toml --store results --name their-mi --source resnet50`
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from jobs.runners.score import Told, run

    raise typer.Exit(
        run(
            Told(folder, name, source, epsilon, norm),
            recipe,
            store,
            console=console,
            limit=limit,
            address=address,
            retry_failed=retry_failed,
        )
    )
