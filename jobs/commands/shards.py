"""`gnp shards`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import app


@app.command()
def shards(
    folder: Annotated[Path, typer.Argument(help="An ImageFolder, or images with a labels.csv.", show_default=False)],
    out: Annotated[
        str, typer.Argument(help="Where the shards go: a folder, or s3://bucket/prefix.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="Prefix of the shards' names.")] = "images",
    per_shard: Annotated[int, typer.Option(min=1, help="Images in a shard.")] = 1000,
) -> None:
    """Packs an ImageFolder, or a folder with labels.csv, into WebDataset shards.

    An ImageFolder has one sub-folder per class, numbered in the order of the sorted names: for ImageNet's n01440764…
    these are the usual indices. A labels.csv has the columns filename and label, the class index from 0, and if you
    like targeted_label, which targeted attacks take with target_class = "shard". Image files
    are stored as they are.
    """
    from pipeline.data.pack import from_folder

    names, left_out = from_folder(folder, out, name=name, per_shard=per_shard)
    for path in left_out:
        sys.stderr.write(f"left out, no image: {path}\n")
    sys.stdout.write(f"{len(names)} shards in {out}: {names[0]} … {names[-1]}\n")
