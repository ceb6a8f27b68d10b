"""Packing a folder of images into WebDataset shards."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from pipeline.data.shards import IMAGE_EXTENSIONS, write_tar
from pipeline.errors import RecipeError
from pipeline.storage import Storage

# Tables of labels beside the images: TransferAttack's, and the NIPS 2017 set's under its two names.
LABEL_TABLES = ("labels.csv", "images.csv", "dev_dataset.csv")


@dataclass(frozen=True)
class _ImageFile:
    """An image to pack.

    Attributes:
        name: Its name in the folder or in the table; the key follows from it.
        path: The file.
        label: Class index.
        target_class: Class that a targeted attack is to reach, where the table names one.
    """

    name: PurePath
    path: Path
    label: int
    target_class: int | None = None


def pack_folder(folder: Path, out: str, *, name: str, per_shard: int) -> tuple[list[str], list[Path]]:
    """Packs an ImageFolder, or a folder with `labels.csv`, into WebDataset shards.

    Args:
        folder: Either one sub-folder of images per class (classes numbered in the order of the sorted names, as
            torchvision does; ImageNet's `n01440764`… come out right), or images beside a `labels.csv` with the
            columns `filename` and `label`, and for targeted attacks `targeted_label`; the files may also lie in
            `images/` beside it, as TransferAttack's do. The NIPS 2017 set's `images.csv` is accepted, too.
        out: A folder or `s3://` URL; `{name}-000000.tar`… are written there.
        name: The prefix of the shards' names.
        per_shard: Images in a shard; the last holds fewer.

    Returns:
        The names of the shards, and the files that were left out because they are not images.

    Raises:
        RecipeError: The folder holds no labelled images, a listed file is missing, two images have the same key, or
            `out` already holds shards of that name.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder")
    table = next((folder / name for name in LABEL_TABLES if (folder / name).exists()), None)
    images, left_out = _list_classes(folder) if table is None else _list_table(table)
    if not images:
        raise RecipeError(f"{folder}: no images; expected one sub-folder per class, or a labels.csv")
    by_key = _by_key(images)
    store = Storage(out, create=True)
    existing = [stored.key for stored in store.list_folder() if fnmatchcase(stored.key, f"{name}-*.tar")]
    if existing:
        raise RecipeError(f"{store.url_of(existing[0])} exists already; remove it and its like, or give another name")
    shards = []
    keys = list(by_key)
    for index, start in enumerate(range(0, len(keys), per_shard)):
        shards.append(f"{name}-{index:06d}.tar")
        store.put(shards[-1], write_tar(_to_sample(key, by_key[key]) for key in keys[start : start + per_shard]))
    if table is None:
        classes = {image.name.parts[0]: image.label for image in images}
        store.put("classes.json", json.dumps(classes, indent=1).encode())
    return shards, left_out


def _by_key(images: Sequence[_ImageFile]) -> dict[str, _ImageFile]:
    by_key: dict[str, _ImageFile] = {}
    for image in images:
        key = sample_key(image.name)
        if key in by_key:
            raise RecipeError(f"{image.path} and {by_key[key].path} would both have the key {key!r}; rename one")
        by_key[key] = image
    return by_key


def _to_sample(key: str, image: _ImageFile) -> dict[str, str | bytes]:
    return {
        "__key__": key,
        image.path.suffix[1:].lower(): image.path.read_bytes(),
        "cls": str(image.label).encode(),
        **({} if image.target_class is None else {"target": str(image.target_class).encode()}),
    }


def normalized_row(row: Mapping[str, str]) -> dict[str, str]:
    """A row of a table of labels, with the column names of `labels.csv`.

    NIPS 2017's tables count classes from 1, and name files without .png.
    """
    if "ImageId" not in row or "TrueLabel" not in row:
        return dict(row)
    labels = {"label": row["TrueLabel"], "targeted_label": row.get("TargetClass")}
    present = {name: label for name, label in labels.items() if label is not None}
    from_zero = {name: str(int(label) - 1) if label.isdecimal() else label for name, label in present.items()}
    return {"filename": f"{row['ImageId']}.png", **from_zero}


def sample_key(path: PurePath) -> str:
    """The key of an image file, from its path in the folder."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.with_suffix("").as_posix())


def _is_image(path: Path) -> bool:
    return path.suffix[1:].lower() in IMAGE_EXTENSIONS


def _list_classes(folder: Path) -> tuple[list[_ImageFile], list[Path]]:
    """Images in one sub-folder per class, and files that are not images."""
    images: list[_ImageFile] = []
    left_out = sorted(path for path in folder.iterdir() if path.is_file())
    for label, class_folder in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(path for path in class_folder.rglob("*") if path.is_file()):
            if _is_image(path):
                images.append(_ImageFile(path.relative_to(folder), path, label))
            else:
                left_out.append(path)
    return images, left_out


def _list_table(table: Path) -> tuple[list[_ImageFile], list[Path]]:
    """Images of a table of labels, and listed files that are not images."""
    images: list[_ImageFile] = []
    left_out = []
    for where, row in _read_table(table):
        path = table.parent / (row["filename"] or "")
        if not path.is_file():
            path = table.parent / "images" / (row["filename"] or "")  # as TransferAttack's folder has it
        if not path.resolve().is_relative_to(table.parent.resolve()) or not path.is_file():
            raise RecipeError(f"{where}: no file {row['filename']!r} in this folder")
        for column in ("label", "targeted_label"):
            if column in row and not re.fullmatch(r"[0-9]{1,9}", (row[column] or "").strip()):
                raise RecipeError(f"{where}: the {column.replace('_', ' ')} {row[column]!r} is no class index")
        if _is_image(path):
            target_class = int(row["targeted_label"]) if "targeted_label" in row else None
            images.append(_ImageFile(PurePath(row["filename"]), path, int(row["label"]), target_class))
        else:
            left_out.append(path)
    return images, left_out


def _read_table(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table of labels, each with its file and line for messages."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{table}: cannot be read as UTF-8 text ({error})") from error
    with io.StringIO(text, newline="") as file:
        rows = csv.DictReader(file)
        if not {"filename", "label"} <= normalized_row(dict.fromkeys(rows.fieldnames or (), "")).keys():
            raise RecipeError(f"{table}: expected the columns filename,label; found {','.join(rows.fieldnames or ())}")
        for row in rows:
            yield f"{table} line {rows.line_num}", normalized_row(row)
