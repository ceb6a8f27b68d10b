"""A folder of images → WebDataset shards."""

import csv
import io
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from pipeline.data.shards import IMAGE_EXTENSIONS, write
from pipeline.errors import RecipeError
from pipeline.storage import Storage

# What an image file is called, where it is, its class, and the class that a targeted attack is to reach.
_Listed = tuple[PurePath, Path, int, int | None]


# What lists the classes of images beside it: TransferAttack's, and the NIPS 2017 set's under its two names.
LABELS = ("labels.csv", "images.csv", "dev_dataset.csv")


def from_folder(folder: Path, out: str, *, name: str, per_shard: int) -> tuple[list[str], list[Path]]:
    """Packs an ImageFolder, or a folder with `labels.csv`, into WebDataset shards.

    Args:
        folder: Either one sub-folder of images per class (classes numbered in the order of the sorted names, as
            torchvision does; ImageNet's `n01440764`… come out right), or images beside a `labels.csv` with the
            columns `filename` and `label`, and if targeted attacks shall find their class, `targeted_label`; the files
            may also lie in `images/` beside it, as TransferAttack's do. The NIPS 2017 set's `images.csv` will do, too.
        out: A folder or `s3://` URL; `{name}-000000.tar`… are written there.
        name: The prefix of the shards' names.
        per_shard: Images in a shard; the last holds fewer.

    Returns:
        The names of the shards, and the files that were left out because they are no images.

    Raises:
        RecipeError: The folder holds no labelled images, a listed file is missing, two keys coincide, or shards of
            that name lie in `out` already.
    """
    labels = next((folder / name for name in LABELS if (folder / name).exists()), folder / LABELS[0])
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder")
    listed, left_out = _from_csv(labels) if labels.exists() else _from_classes(folder)
    if not listed:
        raise RecipeError(f"{folder}: no images; expected one sub-folder per class, or a labels.csv")
    keys: dict[str, Path] = {}
    for called, path, _, _ in listed:
        key = key_of(called)
        if key in keys:
            raise RecipeError(f"{path} and {keys[key]} would both have the key {key!r}; rename one")
        keys[key] = path
    store = Storage(out, create=True)
    before = [item.key for item in store.list_folder() if fnmatchcase(item.key, f"{name}-*.tar")]
    if before:
        raise RecipeError(f"{store.at(before[0])} exists already; remove it and its like, or give another name")
    names = []
    entries = list(zip(keys, listed, strict=True))
    for index, start in enumerate(range(0, len(entries), per_shard)):
        samples = (
            {
                "__key__": key,
                path.suffix[1:].lower(): path.read_bytes(),
                "cls": str(label).encode(),
                **({} if wanted is None else {"target": str(wanted).encode()}),
            }
            for key, (_, path, label, wanted) in entries[start : start + per_shard]
        )
        names.append(f"{name}-{index:06d}.tar")
        store.put(names[-1], write(samples))
    if not labels.exists():
        classes = {called.parts[0]: label for called, _, label, _ in listed}
        store.put("classes.json", json.dumps(classes, indent=1).encode())
    return names, left_out


def as_listed(row: Mapping[str, str]) -> dict[str, str]:
    """A line of a table of labels in our words: NIPS 2017's counts classes from 1, and names files without .png."""
    if "ImageId" not in row or "TrueLabel" not in row:
        return dict(row)
    named = {"label": row["TrueLabel"], "targeted_label": row.get("TargetClass")}
    counted = {name: str(int(label) - 1) if label and label.isdecimal() else label for name, label in named.items()}
    kept = {name: label for name, label in counted.items() if label is not None}
    return {"filename": f"{row['ImageId']}.png", **kept}


def key_of(path: PurePath) -> str:
    """The key of an image file, from its path in the folder."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.with_suffix("").as_posix())


def _from_classes(folder: Path) -> tuple[list[_Listed], list[Path]]:
    listed: list[_Listed] = []
    left_out = sorted(path for path in folder.iterdir() if path.is_file())
    for label, sub in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(path for path in sub.rglob("*") if path.is_file()):
            if path.suffix[1:].lower() in IMAGE_EXTENSIONS:
                listed.append((path.relative_to(folder), path, label, None))
            else:
                left_out.append(path)
    return listed, left_out


def _from_csv(labels: Path) -> tuple[list[_Listed], list[Path]]:
    listed: list[_Listed] = []
    left_out = []
    try:
        text = labels.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{labels}: cannot be read as UTF-8 text ({error})") from error
    with io.StringIO(text, newline="") as file:
        rows = csv.DictReader(file)
        if not {"filename", "label"} <= as_listed(dict.fromkeys(rows.fieldnames or (), "")).keys():
            raise RecipeError(f"{labels}: expected the columns filename,label; found {','.join(rows.fieldnames or ())}")
        for row in map(as_listed, rows):
            path = labels.parent / (row["filename"] or "")
            if not path.is_file():
                path = labels.parent / "images" / (row["filename"] or "")  # as TransferAttack has it
            if not path.resolve().is_relative_to(labels.parent.resolve()) or not path.is_file():
                raise RecipeError(f"{labels} line {rows.line_num}: no file {row['filename']!r} in this folder")
            for column in ("label", "targeted_label"):
                if column in row and not re.fullmatch(r"[0-9]{1,9}", (row[column] or "").strip()):
                    where = f"{labels} line {rows.line_num}"
                    raise RecipeError(f"{where}: the {column.replace('_', ' ')} {row[column]!r} is no class index")
            if path.suffix[1:].lower() in IMAGE_EXTENSIONS:
                wanted = int(row["targeted_label"]) if "targeted_label" in row else None
                listed.append((PurePath(row["filename"]), path, int(row["label"]), wanted))
            else:
                left_out.append(path)
    return listed, left_out
