"""Shards: where they lie, what is in them, and how they are written.

WebDataset's own expansion and grouping read the tar; around them stands the strictness that a results pipeline needs.
A tar that was cut at a member boundary reads everywhere as fewer samples, and a damaged header ends Python's `tarfile`
without a word; here either is an error of that shard.
"""

import csv
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import braceexpand
import webdataset
from webdataset.autodecode import basichandlers
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from pipeline.errors import MissingError, RecipeError, SampleError, ShardError
from pipeline.sample import Rejected, Sample
from pipeline.storage import Storage, absolute, split

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class ShardFile:
    """One shard that a recipe names.

    Attributes:
        url: Where it lies.
        name: What results call it: its file name without `.tar`.
        size_bytes: Its size when it was listed.
    """

    url: str
    name: str
    size_bytes: int


def find(patterns: Sequence[str]) -> tuple[ShardFile, ...]:
    """The shards that URLs, brace ranges (`val-{0000..0063}.tar`) and globs name, in the order in which they stand.

    Raises:
        MissingError: A URL names nothing, or a glob matches nothing.
        RecipeError: Two shards would have the same name in the results.
    """
    found: list[ShardFile] = []
    sizes: dict[str, dict[str, int]] = {}
    for pattern in patterns:
        for url in braceexpand.braceexpand(pattern):
            folder, name = split(absolute(url))
            if _GLOB.search(folder):
                raise RecipeError(f"shards {url!r}: a wildcard may stand in the file name only")
            if folder not in sizes:
                sizes[folder] = {item.key: item.size_bytes for item in Storage(folder).list() if "/" not in item.key}
            matches = [key for key in sorted(sizes[folder]) if fnmatchcase(key, name)] if _GLOB.search(name) else [name]
            if not matches or any(match not in sizes[folder] for match in matches):
                raise MissingError(f"shards {url!r}: no such shard in {folder} ({len(sizes[folder])} files there)")
            found += [ShardFile(f"{folder}/{m}", shard_name(m), sizes[folder][m]) for m in matches]
    seen: dict[str, str] = {}
    for shard in found:
        if shard.name in seen:
            raise RecipeError(
                f"shards: {seen[shard.name]} and {shard.url} would both be called {shard.name!r}; rename one"
            )
        seen[shard.name] = shard.url
    return tuple(found)


def shard_name(filename: str) -> str:
    """What results call a shard: its file name without `.tar`, in characters that are safe in any key.

    Raises:
        RecipeError: The file is not an uncompressed tar.
    """
    if not filename.endswith(".tar"):
        raise RecipeError(
            f"shards: {filename!r} is not a .tar; compressed shards are to be unpacked to plain tar first"
        )
    return re.sub(r"[^A-Za-z0-9._-]", "-", filename.removesuffix(".tar"))


def fetch(url: str) -> bytes:
    """A shard's bytes, whole.

    Raises:
        MissingError: It is not there.
        StorageError: The store failed.
    """
    folder, name = split(url)
    return Storage(folder).get(name)


def read(data: bytes, *, name: str, classes: int) -> Iterator[Sample | Rejected]:
    """The samples of a tar in tar order, each usable or rejected with its reason.

    Args:
        data: The whole tar.
        name: What to call it in errors.
        classes: Labels must lie in [0, classes).

    Raises:
        ShardError: The tar is truncated or damaged, or holds one file twice.
    """
    seen: set[str] = set()
    members = _members(data, name)
    for record in _grouped(data, name):
        key = str(record["__key__"])
        try:
            if key in seen:
                raise SampleError("a sample of this key stands earlier in the shard")
            if key.startswith("/") or ".." in key.split("/"):
                raise SampleError("the key points outside its folder")
            if not _is_utf8(key):
                raise SampleError("the key is not UTF-8")
            yield Sample(key, _image(record), _label(record, classes))
        except SampleError as error:
            yield Rejected(key, str(error))
        seen.add(key)
    yield from _passed_over(members)


def records(data: bytes, *, name: str) -> Iterator[dict[str, Any]]:
    """The grouped, undecoded samples of a complete tar, in tar order: `{"__key__": ..., extension: bytes}`.

    Raises:
        ShardError: The tar is truncated or damaged, or holds one file twice.
    """
    _members(data, name)
    yield from _grouped(data, name)


def _grouped(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from group_by_keys(tar_file_expander([{"url": name, "stream": io.BytesIO(data)}]))
    except (ValueError, tarfile.TarError) as error:
        raise ShardError(f"shard {name}: {error.args[0]}") from error


def write(samples: Iterable[Mapping[str, Any]]) -> bytes:
    """A tar of `{"__key__": ..., extension: bytes}` samples; the same samples always give the same bytes."""
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write(dict(sample))
    return buffer.getvalue()


def _members(data: bytes, name: str) -> list[tarfile.TarInfo]:
    """The members of a tar that they fill up to its end-of-archive of two zero blocks (POSIX.1-1988).

    Raises:
        ShardError: The tar is truncated or damaged.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = tar.getmembers()
            tail = data[tar.offset :]
    except tarfile.TarError as error:
        raise ShardError(f"shard {name}: not a complete tar ({error}); fetch or make it again") from error
    if tail.strip(b"\0"):
        at = len(data) - len(tail)
        raise ShardError(f"shard {name}: damaged at byte {at}: no valid header; fetch or make it again")
    if len(tail) < 1024:
        raise ShardError(f"shard {name}: truncated: the end-of-archive blocks are missing; fetch or make it again")
    return members


def _passed_over(members: Iterable[tarfile.TarInfo]) -> Iterator[Rejected]:
    """The members that WebDataset passes over without a word, but for folders and its own `__metadata__`."""
    for member in members:
        if member.isdir() or re.match(r"__[^/]*__($|/)", member.name):
            continue
        if not member.isreg():
            yield Rejected(member.name, "a link or a device, not a file")
        elif base_plus_ext(member.name)[0] is None:
            yield Rejected(
                member.name, "not a sample: a file is named KEY.EXTENSION, its name does not begin with a dot"
            )


def _is_utf8(key: str) -> bool:
    """Whether a name out of a tar can be written again: tarfile turns undecodable bytes into lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in key)


def _image(record: Mapping[str, Any]) -> bytes:
    for extension in IMAGE_EXTENSIONS:
        if extension in record:
            return bytes(record[extension])
    raise SampleError(f"no image: none of {', '.join(IMAGE_EXTENSIONS)}")


def _label(record: Mapping[str, Any], classes: int) -> int:
    if "cls" not in record:
        raise SampleError("no label: no cls")
    try:
        label = int(basichandlers("cls", record["cls"]))
    except ValueError:
        raise SampleError(f"the label is no whole number: {record['cls'][:40]!r}") from None
    if not 0 <= label < classes:
        raise SampleError(f"label {label} lies outside 0..{classes - 1}")
    return label


def from_folder(folder: Path, out: str, *, name: str, per_shard: int) -> tuple[list[str], list[Path]]:
    """Packs an ImageFolder, or a folder with `labels.csv`, into WebDataset shards.

    Args:
        folder: Either one sub-folder of images per class (classes numbered in the order of the sorted names, as
            torchvision does; ImageNet's `n01440764`… come out right), or images beside a `labels.csv` with the
            columns `filename` and `label`.
        out: A folder or `s3://` URL; `{name}-000000.tar`… are written there.
        name: The prefix of the shards' names.
        per_shard: Images in a shard; the last holds fewer.

    Returns:
        The names of the shards, and the files that were left out because they are no images.

    Raises:
        RecipeError: The folder holds no labelled images, a listed file is missing, or two keys coincide.
    """
    labels = folder / "labels.csv"
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder")
    listed, left_out = _from_csv(labels) if labels.exists() else _from_classes(folder)
    if not listed:
        raise RecipeError(f"{folder}: no images; expected one sub-folder per class, or a labels.csv")
    keys: dict[str, Path] = {}
    for path, _ in listed:
        key = re.sub(r"[^A-Za-z0-9_-]", "_", path.relative_to(folder).with_suffix("").as_posix())
        if key in keys:
            raise RecipeError(f"{path} and {keys[key]} would both have the key {key!r}; rename one")
        keys[key] = path
    store = Storage(out, create=True)
    names = []
    entries = list(zip(keys, listed, strict=True))
    for index, start in enumerate(range(0, len(entries), per_shard)):
        samples = (
            {"__key__": key, path.suffix[1:].lower(): path.read_bytes(), "cls": str(label).encode()}
            for key, (path, label) in entries[start : start + per_shard]
        )
        names.append(f"{name}-{index:06d}.tar")
        store.put(names[-1], write(samples))
    if not labels.exists():
        classes = {path.parent.relative_to(folder).parts[0]: label for path, label in listed}
        store.put("classes.json", json.dumps(classes, indent=1).encode())
    return names, left_out


def _from_classes(folder: Path) -> tuple[list[tuple[Path, int]], list[Path]]:
    listed, left_out = [], []
    for label, sub in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(path for path in sub.rglob("*") if path.is_file()):
            if path.suffix[1:].lower() in IMAGE_EXTENSIONS:
                listed.append((path, label))
            else:
                left_out.append(path)
    return listed, left_out


def _from_csv(labels: Path) -> tuple[list[tuple[Path, int]], list[Path]]:
    listed, left_out = [], []
    with labels.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"filename", "label"} <= set(rows.fieldnames or ()):
            raise RecipeError(f"{labels}: expected the columns filename,label; found {','.join(rows.fieldnames or ())}")
        for row in rows:
            path = labels.parent / row["filename"]
            if not path.resolve().is_relative_to(labels.parent.resolve()) or not path.is_file():
                raise RecipeError(f"{labels} line {rows.line_num}: no file {row['filename']!r} in this folder")
            if not (row["label"] or "").strip().isdecimal():
                raise RecipeError(f"{labels} line {rows.line_num}: the label {row['label']!r} is no class index")
            if path.suffix[1:].lower() in IMAGE_EXTENSIONS:
                listed.append((path, int(row["label"])))
            else:
                left_out.append(path)
    return listed, left_out
