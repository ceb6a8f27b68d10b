"""`gnp shards`: packs a folder of images into WebDataset shards."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import app


@app.command()
def shards(
    folder: Annotated[Path, typer.Argument(help="An ImageFolder, or images with a labels.csv.", show_default=False)],
    out: Annotated[
        str, typer.Argument(help="Destination of the shards: a folder, or s3://bucket/prefix.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="Prefix of the shards' names.")] = "images",
    per_shard: Annotated[int, typer.Option(min=1, help="Images per shard.")] = 1000,
) -> None:
    """Packs an ImageFolder, or a folder with labels.csv, into WebDataset shards.

    An ImageFolder has one subfolder per class; classes are numbered in the order of the sorted names, which for
    ImageNet's n01440764… gives the usual indices. A labels.csv has the columns filename, label (the class index from 0)
    and, optionally, targeted_label, the class for targeted attacks with target_class = "shard". Image files are stored
    unchanged.
    """
    from pipeline.data.pack import pack_folder

    names, skipped = pack_folder(folder, out, name=name, per_shard=per_shard)
    for path in skipped:
        sys.stderr.write(f"skipped, not an image: {path}\n")
    sys.stdout.write(f"{len(names)} shards in {out}: {names[0]} … {names[-1]}\n")
