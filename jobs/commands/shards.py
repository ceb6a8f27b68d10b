"""`gnp shards`: packs labelled images into WebDataset shards."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.app import app, console
from jobs.output import counted, print_line

if TYPE_CHECKING:
    from pipeline.packing.pack import PackedShards

# Lines of the mapping that are printed from its beginning, and from its end.
_SHOWN = 3


@app.command()
def shards(
    source: Annotated[
        Path,
        typer.Argument(
            help="An ImageFolder, a folder of images with a table of labels, or Parquet files.", show_default=False
        ),
    ],
    out: Annotated[
        str, typer.Argument(help="Destination of the shards: a folder, or s3://bucket/prefix.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="Prefix of the shards' names.")] = "images",
    per_shard: Annotated[int, typer.Option(min=1, help="Images per shard.")] = 1000,
    classes: Annotated[
        Path | None,
        typer.Option(help="Names of the classes: one per line, from class 0; or a classes.json.", show_default=False),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Table of labels, if it has no usual name.", show_default=False)
    ] = None,
) -> None:
    """Packs an ImageFolder, images with a table of labels, or Parquet files into WebDataset shards.

    An ImageFolder has one subfolder per class. Names that are whole numbers are the labels; ImageNet's synsets
    (n01440764…) get ImageNet's indices, also where only some of them are there; other names are numbered in the order
    of their text, as torchvision does. Hidden folders and folders without an image are no classes. `--classes` states
    the numbers instead. What is ambiguous is refused.

    Tables of labels are found by name: labels.csv (columns filename, label from 0, and optionally targeted_label for
    attacks with target_class = "shard"); images.csv or dev_dataset.csv of NIPS 2017; for ImageNet's validation images
    LOC_val_solution.csv, val.txt (a file name and a label per line), or ILSVRC2012_validation_ground_truth.txt beside
    its meta.mat. Parquet files have the columns image and label, as on the Hugging Face Hub.

    Image files are stored unchanged. The names of the classes are written beside the shards, as classes.json.
    """
    from pipeline.packing.pack import pack

    _print_packed(pack(source, out, name=name, per_shard=per_shard, classes=classes, labels=labels), out)


def _print_packed(packed: "PackedShards", out: str) -> None:
    for reason, items in packed.left_out.items():
        shown = ", ".join(items[:_SHOWN]) + (", …" if len(items) > _SHOWN else "")
        print_line(console, f"left out {len(items):,}, {reason}: {shown}")
    for note in packed.notes:
        print_line(console, f"note: {note}")
    used = set(packed.labels)
    by_index = sorted((index, name) for name, index in packed.classes.items() if index in used)
    lines = [f"  class {index}: {name}" for index, name in by_index]
    if len(lines) > 2 * _SHOWN:
        lines = [*lines[:_SHOWN], "  …", *lines[-_SHOWN:]]
    first, last = packed.labels[0], packed.labels[-1]
    for line in itertools.chain(
        [f"{counted(packed.count, 'image')} of {len(packed.labels):,} classes, with labels {first} to {last}"],
        lines,
        [f"{counted(len(packed.shards), 'shard')} in {out}: {packed.shards[0]} … {packed.shards[-1]}"],
    ):
        print_line(console, line)
