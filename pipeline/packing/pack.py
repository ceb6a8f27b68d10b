"""Packing labelled images into WebDataset shards, with the names of their classes beside them."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.data.shards import write_tar
from pipeline.errors import MissingError, RecipeError
from pipeline.packing.class_indices import read_class_names
from pipeline.packing.image_folder import read_image_folder
from pipeline.packing.label_tables import find_table, read_labelled
from pipeline.packing.labelled import EMPTY, LabelledImage, LabelledImages, sample_key
from pipeline.packing.parquet_images import find_parquet, read_parquet_images
from pipeline.storage import Storage

CLASSES_FILE = "classes.json"


@dataclass(frozen=True)
class PackedShards:
    """What was packed.

    Attributes:
        shards: The names of the shards.
        count: Number of images.
        labels: The distinct class indices of the images, ascending.
        classes: Class name → index; empty where the source has no names.
        left_out: Reason → what was left out for it.
        notes: Lines that the user should read.
    """

    shards: Sequence[str]
    count: int
    labels: Sequence[int]
    classes: Mapping[str, int]
    left_out: Mapping[str, Sequence[str]]
    notes: Sequence[str]


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
    _require_same_classes(store, found.classes)
    left_out = {reason: list(names) for reason, names in found.left_out.items()}
    samples = _samples(by_key, left_out)
    shards: list[str] = []
    count = 0
    while chunk := list(itertools.islice(samples, per_shard)):
        shards.append(f"{name}-{len(shards):06d}.tar")
        store.put(shards[-1], write_tar(chunk))
        count += len(chunk)
    if not shards:
        raise RecipeError(f"{source}: every image is an empty file")
    if found.classes:
        store.put(CLASSES_FILE, _encode_classes(found.classes))
    labels_used = sorted({image.label for image in found.images})
    return PackedShards(
        shards, count, labels_used, found.classes, left_out, [*found.notes, *_counting_notes(labels_used)]
    )


def _counting_notes(labels: Sequence[int]) -> list[str]:
    """A note where the labels look as if they were counted from 1."""
    if len(labels) < 2 or list(labels) != list(range(1, len(labels) + 1)):
        return []
    return [f"the labels are 1 to {len(labels)}, and labels count from 0: if 1 is the first class, they are off by one"]


def _read(source: Path, out: str, names: Mapping[str, int], labels: Path | None) -> LabelledImages:
    if source.is_file():
        return read_parquet_images([source], names=names)
    if not source.is_dir():
        raise RecipeError(f"{source}: no such folder")
    table = labels or find_table(source)
    if table is not None:
        return read_labelled(source, table, names=names)
    files = find_parquet(source)
    if files:
        return read_parquet_images(files, names=names)
    return read_image_folder(source, names=names, out=None if "://" in out else Path(out))


def _by_key(images: Sequence[LabelledImage]) -> dict[str, LabelledImage]:
    by_key: dict[str, LabelledImage] = {}
    for image in images:
        key = sample_key(image.name)
        if key in by_key:
            if image.where == by_key[key].where:
                raise RecipeError(f"{image.where}: the table of labels names it twice; remove one of the lines")
            raise RecipeError(f"{image.where} and {by_key[key].where} would both have the key {key!r}; rename one")
        by_key[key] = image
    return by_key


def _require_same_classes(store: Storage, classes: Mapping[str, int]) -> None:
    """Refuses to write beside shards whose classes have other numbers.

    Raises:
        RecipeError: Other classes are there.
    """
    try:
        existing = store.get(CLASSES_FILE)
    except MissingError:
        return
    if classes and existing != _encode_classes(classes):
        where = store.url_of(CLASSES_FILE)
        raise RecipeError(f"{where} numbers the classes otherwise; give --classes {where}, or another folder")


def _encode_classes(classes: Mapping[str, int]) -> bytes:
    return json.dumps(classes, indent=1, ensure_ascii=False).encode()


def _samples(by_key: Mapping[str, LabelledImage], left_out: dict[str, list[str]]) -> Iterator[dict[str, str | bytes]]:
    """The samples of images that have bytes; the others are added to `left_out`."""
    for key, image in by_key.items():
        try:
            data = image.read()
        except OSError as error:
            raise RecipeError(f"{image.where}: cannot be read ({error.strerror})") from error
        if not data:
            left_out.setdefault(EMPTY, []).append(image.where)
            continue
        sample: dict[str, str | bytes] = {
            "__key__": key,
            image.name.suffix[1:].lower(): data,
            "cls": str(image.label).encode(),
        }
        if image.target_class is not None:
            sample["target"] = str(image.target_class).encode()
        yield sample
