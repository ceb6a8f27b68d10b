"""Parquet files of images, as Hugging Face's `datasets` writes them: a column `image` of bytes, a column `label`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RecipeError
from pipeline.packing.class_indices import label_index
from pipeline.packing.labelled import LabelledImage, LabelledImages, has_image_extension


@dataclass
class _ParquetFile:
    """One file, of which one row group at a time is kept in memory.

    Attributes:
        path: The file.
        group: The row group that is in memory, and its images' bytes.
    """

    path: Path
    group: tuple[int, list[bytes]] = field(default=(-1, []), repr=False)

    def image(self, group: int, row: int) -> bytes:
        """The bytes of one image."""
        if self.group[0] != group:
            with pq.ParquetFile(self.path) as file:
                column = file.read_row_group(group, columns=["image"]).column("image").to_pylist()
            self.group = group, [_image_bytes(value) for value in column]
        return self.group[1][row]


def read_parquet_images(files: Sequence[Path], *, names: Mapping[str, int]) -> LabelledImages:
    """Lists the images of Parquet files; their bytes are read when they are packed.

    Args:
        files: The files. `image` is bytes, or a struct with `bytes` and `path`; `label` is a class index or name.
        names: Class name → index, for labels that are names; by default those in the file's own metadata.

    Raises:
        RecipeError: A file is not Parquet, lacks a column or an image, or a label is no class index.
    """
    images: list[LabelledImage] = []
    classes = dict(names)
    for path in files:
        try:
            images += _read_file(path, classes)
        except (pa.ArrowException, OSError) as error:
            raise RecipeError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0][:200]})") from error
    return LabelledImages(images, classes)


def _read_file(path: Path, classes: dict[str, int]) -> list[LabelledImage]:
    """The images of one file; adds the names of its classes to `classes`, unless some are known."""
    source = _ParquetFile(path)
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if not {"image", "label"} <= set(schema.names):
            raise RecipeError(f"{path}: expected the columns image and label; found {', '.join(schema.names)}"[:500])
        if not classes:
            classes |= _class_names(schema)
        has_paths = pa.types.is_struct(schema.field("image").type) and "path" in _field_names(schema)
        columns = ["image.path", "label"] if has_paths else ["label"]
        images: list[LabelledImage] = []
        for group in range(file.num_row_groups):
            for row, entry in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                where = f"{path} row {len(images)}"
                name = _name(path, len(images), (entry.get("image") or {}).get("path") or "")
                label = _label(entry["label"], classes, where)
                images.append(LabelledImage(name, where, label, partial(source.image, group, row)))
    return images


def _field_names(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema.field("image").type]


def _name(file: Path, row: int, path: str) -> PurePosixPath:
    """The image's own name, or one made of the file's name and the row."""
    own = PurePosixPath(path.replace("\\", "/")).name
    return PurePosixPath(own if has_image_extension(own) else f"{file.stem}-{row:06d}.jpg")


def _label(value: Any, classes: Mapping[str, int], where: str) -> int:
    index = label_index(value, classes) if isinstance(value, str) else value
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        hint = ": a split without labels?" if value in (-1, None) else ""
        raise RecipeError(f"{where}: the label {value!r} is no class index{hint}")
    return index


def _class_names(schema: pa.Schema) -> dict[str, int]:
    """The names of the classes in the metadata that `datasets` writes; empty where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {str(name): index for index, name in enumerate(features["label"]["names"])}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def _image_bytes(value: Any) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else b""
