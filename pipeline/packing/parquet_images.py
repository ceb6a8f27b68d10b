"""Parquet files of images, as Hugging Face's `datasets` writes them: a column `image` of bytes, a column `label`."""

import json
import re
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

_SPLIT = re.compile(r"(train|test|val|validation|dev)(?![a-z])")


@dataclass
class _ParquetFile:
    """One file, of which one row group at a time is kept in memory.

    Attributes:
        path: The file.
        is_struct: Whether an image is a struct with `bytes`, not bytes alone.
        group: The row group that is in memory, and its images' bytes.
    """

    path: Path
    is_struct: bool
    group: tuple[int, list[bytes]] = field(default=(-1, []), repr=False)

    def image(self, group: int, row: int) -> bytes:
        """The bytes of one image."""
        if self.group[0] != group:
            with pq.ParquetFile(self.path) as file:
                column = file.read_row_group(group, columns=["image"]).column("image").to_pylist()
            images = [value and value["bytes"] for value in column] if self.is_struct else column
            self.group = group, [image or b"" for image in images]
        return self.group[1][row]


@dataclass(frozen=True)
class _Row:
    """One row: where it stands, the image's own file name, its label as it is written, and how its bytes are read."""

    where: str
    path: str
    label: Any
    image: "partial[bytes]"


def find_parquet(folder: Path) -> list[Path]:
    """The Parquet files of a folder.

    Raises:
        RecipeError: They are of several splits, or lie one folder below.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix == ".parquet" and path.is_file())
    splits = sorted({found[0] for path in files if (found := _SPLIT.match(path.name))})
    if len(splits) > 1:
        raise RecipeError(f"{folder}: the files are of several splits ({', '.join(splits)}); pack each by itself")
    below = None if files else next(iter(sorted(folder.glob("*/*.parquet"))), None)
    if below is not None:
        raise RecipeError(f"{folder}: no images, but Parquet files one folder below; did you mean {below.parent}?")
    return files


def read_parquet_images(files: Sequence[Path], *, names: Mapping[str, int]) -> LabelledImages:
    """Lists the images of Parquet files; their bytes are read when they are packed.

    Args:
        files: The files. `image` is bytes, or a struct with `bytes` and `path`; `label` is a class index or name.
        names: Class name → index. Where it is empty, a number is the index itself, and the names in the file's own
            metadata are kept; else a number stands for its name in these metadata.

    Raises:
        RecipeError: A file is not Parquet or lacks a column, or a label is no class index.
    """
    rows: list[tuple[_Row, int]] = []
    classes = dict(names)
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                own_names = _class_names(file.schema_arrow)
                found = _read_rows(path, file)
        except (pa.ArrowException, OSError) as error:
            raise RecipeError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0][:200]})") from error
        classes = classes or {name: index for index, name in enumerate(own_names)}
        rows += [(row, _label(row, own_names, names or classes, are_given=bool(names))) for row in found]
    own = [PurePosixPath(row.path.replace("\\", "/")).name for row, _ in rows]
    is_named = len(set(own)) == len(own) and all(map(has_image_extension, own))
    images = [
        LabelledImage(PurePosixPath(name if is_named else _made_up_name(row)), row.where, label, row.image)
        for name, (row, label) in zip(own, rows, strict=True)
    ]
    return LabelledImages(images, classes)


def _read_rows(path: Path, file: pq.ParquetFile) -> list[_Row]:
    """The rows of a file, without reading the images' bytes."""
    schema = file.schema_arrow
    if not {"image", "label"} <= set(schema.names):
        raise RecipeError(f"{path}: expected the columns image and label; found {', '.join(schema.names)}"[:500])
    kind = schema.field("image").type
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    if not any(check(fields.get("bytes", kind)) for check in (pa.types.is_binary, pa.types.is_large_binary)):
        raise RecipeError(f"{path}: the column image has type {kind}; encoded images are wanted, as bytes"[:500])
    source = _ParquetFile(path, is_struct=bool(fields))
    columns = ["image.path", "label"] if "path" in fields else ["label"]
    rows: list[_Row] = []
    for group in range(file.num_row_groups):
        for row, entry in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
            own_path = (entry.get("image") or {}).get("path") or ""
            rows.append(_Row(f"{path} row {len(rows)}", own_path, entry["label"], partial(source.image, group, row)))
    return rows


def _made_up_name(row: _Row) -> str:
    """The file's name and the row."""
    path, _, number = row.where.rpartition(" row ")
    return f"{Path(path).stem}-{int(number):06d}.jpg"


def _label(row: _Row, own_names: Sequence[str], classes: Mapping[str, int], *, are_given: bool) -> int:
    """The class index of a row; where the classes are given by the user, by the name that the file has for a number."""
    label = row.label
    if are_given and own_names and isinstance(label, int) and 0 <= label < len(own_names):
        label = own_names[label]
        if label not in classes:
            raise RecipeError(f"{row.where}: --classes names no class {label!r}, which the file has for {row.label}")
    index = label_index(label, classes) if isinstance(label, str) else label
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        hint = "; --classes gives names their indices" if isinstance(label, str) and not are_given else ""
        hint = ": a split without labels?" if label in (-1, None) else hint
        raise RecipeError(f"{row.where}: the label {label!r} is no class index{hint}")
    return index


def _class_names(schema: pa.Schema) -> list[str]:
    """The names of the classes in the metadata that `datasets` writes; empty where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
