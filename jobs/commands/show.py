"""`gnp show`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import Store, app, console, folder_at
from pipeline.errors import MissingError
from pipeline.ledger import slug


@app.command()
def show(
    store: Store,
    key: Annotated[str, typer.Argument(help="Of the sample; or SHARD/KEY, or DATASET/SHARD/KEY.", show_default=False)],
    attack: Annotated[str, typer.Option(help="Name of the attack in the picture.", show_default=False)] = "",
    source: Annotated[str, typer.Option(help="Name of the model attacked.", show_default=False)] = "",
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("."),
) -> None:
    """Shows one sample: its picture, and what every target says of it, clean and under each attack.

    In the picture is the attack that fools the most targets, of those that --attack and --source leave.
    """
    from jobs import tables
    from pipeline import dataset

    folder, sample = folder_at(out), dataset.open(store).sample(key)
    said = [each for each in sample.said if attack in ("", each.attack) and source in ("", each.source)]
    if not said:
        names = ", ".join(sorted({f"{each.attack} from {each.source}" for each in sample.said})) or "none yet"
        raise MissingError(f"{key}: no such attack on it has been scored; there are: {names}")
    tables.show_sample(sample, said, console=console)
    path = folder / f"{slug(f'{sample.shard} {sample.key}')}.png"
    path.write_bytes(sample.png(max(said, key=lambda each: each.fooled)))
    sys.stdout.write(f"{path}\n")
