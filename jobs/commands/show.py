"""`gnp show`: one sample, with its picture and predictions."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import Store, app, console, create_folder
from pipeline.errors import MissingError
from pipeline.ledger import slug


@app.command()
def show(
    store: Store,
    key: Annotated[
        str, typer.Argument(help="Key of the sample: KEY, SHARD/KEY or DATASET/SHARD/KEY.", show_default=False)
    ],
    attack: Annotated[str, typer.Option(help="Name of the attack in the picture.", show_default=False)] = "",
    source: Annotated[str, typer.Option(help="Name of the attacked model.", show_default=False)] = "",
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("."),
) -> None:
    """Shows one sample: its picture, and every target's prediction of it, clean and under each attack.

    The picture shows the attack that fools the most targets, among those that match --attack and --source.
    """
    from jobs import tables
    from pipeline import dataset

    folder = create_folder(out)
    sample = dataset.open(store).sample(key)
    views = [view for view in sample.views if attack in ("", view.attack) and source in ("", view.source)]
    if not views:
        names = ", ".join(sorted({f"{view.attack} from {view.source}" for view in sample.views})) or "none yet"
        raise MissingError(f"{key}: no such attack on this sample has been scored; scored are: {names}")
    tables.print_sample(sample, views, console=console)
    path = folder / f"{slug(f'{sample.shard} {sample.key}')}.png"
    path.write_bytes(sample.png(max(views, key=lambda view: view.targets_fooled)))
    sys.stdout.write(f"{path}\n")
