"""Packing labelled images into WebDataset shards, with the names of their classes beside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.data.shards import write_tar
from pipeline.errors import MissingError, RecipeError
from pipeline.packing.class_indices import read_class_names
from pipeline.packing.image_folder import read_image_folder
from pipeline.packing.label_tables import find_table, read_labelled
from pipeline.packing.labelled import LabelledImage, LabelledImages, sample_key
from pipeline.packing.parquet_images import read_parquet_images
from pipeline.storage import Storage

CLASSES_FILE = "classes.json"


@dataclass(frozen=True)
class PackedShards:
    """What was packed.

    Attributes:
        shards: The names of the shards.
        count: Number of images.
        labels: The distinct class indices of the images, ascending.
        source: The images, their classes, and what was left out.
    """

    shards: Sequence[str]
    count: int
    labels: Sequence[int]
    source: LabelledImages


def pack(
    source: Path, out: str, *, name: str, per_shard: int, classes: Path | None = None, labels: Path | None = None
) -> PackedShards:
    """Packs an ImageFolder, images with a table of labels, or Parquet files into WebDataset shards.

    Args:
        source: A folder or a Parquet file; see `read_image_folder`, `read_labelled` and `read_parquet_images`.
        out: A folder or `s3://` URL; `{name}-000000.tar`… are written there, and `classes.json` where classes have
            names.
        name: The prefix of the shards' names.
        per_shard: Images in a shard; the last holds fewer.
        classes: File with the names of the classes; see `read_class_names`.
        labels: Table of labels, if it is not found in the folder by its usual name.

    Raises:
        RecipeError: There are no labelled images, a listed file is missing, a class or label allows two readings, two
            images have the same key, or `out` already holds shards of that name or other classes.
    """
    names = read_class_names(classes) if classes else {}
    found = _read(source, out, names, labels)
    if not found.images:
        raise RecipeError(
            f"{source}: no labelled images; expected one sub-folder per class, a labels.csv or another table of labels "
            "(--labels), or Parquet files"
        )
    by_key = _by_key(found.images)
    store = Storage(out, create=True)
    existing = [stored.key for stored in store.list_folder() if fnmatchcase(stored.key, f"{name}-*.tar")]
    if existing:
        raise RecipeError(f"{store.url_of(existing[0])} exists already; remove it and its like, or give another name")
    if found.classes:
        _write_classes(store, found.classes)
    shards = []
    keys = list(by_key)
    for index, start in enumerate(range(0, len(keys), per_shard)):
        shards.append(f"{name}-{index:06d}.tar")
        store.put(shards[-1], write_tar(_to_sample(key, by_key[key]) for key in keys[start : start + per_shard]))
    return PackedShards(shards, len(keys), sorted({image.label for image in found.images}), found)


def _read(source: Path, out: str, names: Mapping[str, int], labels: Path | None) -> LabelledImages:
    if source.is_file():
        return read_parquet_images([source], names=names)
    if not source.is_dir():
        raise RecipeError(f"{source}: no such folder")
    table = labels or find_table(source)
    if table is not None:
        return read_labelled(source, table, names=names)
    files = sorted(path for path in source.iterdir() if path.suffix == ".parquet" and path.is_file())
    if files:
        return read_parquet_images(files, names=names)
    return read_image_folder(source, names=names, out=None if "://" in out else Path(out))


def _by_key(images: Sequence[LabelledImage]) -> dict[str, LabelledImage]:
    by_key: dict[str, LabelledImage] = {}
    for image in images:
        key = sample_key(image.name)
        if key in by_key:
            raise RecipeError(f"{image.where} and {by_key[key].where} would both have the key {key!r}; rename one")
        by_key[key] = image
    return by_key


def _write_classes(store: Storage, classes: Mapping[str, int]) -> None:
    """Writes the names of the classes, unless the same are there.

    Raises:
        RecipeError: Other classes are there: shards beside each other would count them differently.
    """
    data = json.dumps(classes, indent=1, ensure_ascii=False).encode()
    try:
        existing = store.get(CLASSES_FILE)
    except MissingError:
        store.put(CLASSES_FILE, data)
        return
    if existing != data:
        where = store.url_of(CLASSES_FILE)
        raise RecipeError(f"{where} numbers the classes otherwise; give --classes {where}, or another folder")


def _to_sample(key: str, image: LabelledImage) -> dict[str, str | bytes]:
    try:
        data = image.read()
    except OSError as error:
        raise RecipeError(f"{image.where}: cannot be read ({error.strerror})") from error
    return {
        "__key__": key,
        image.name.suffix[1:].lower(): data,
        "cls": str(image.label).encode(),
        **({} if image.target_class is None else {"target": str(image.target_class).encode()}),
    }
