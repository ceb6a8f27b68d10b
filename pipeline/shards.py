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
from pipeline.storage import Storage, Stored, absolute, split

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class ShardFile:
    """One shard that a recipe names.

    Attributes:
        url: Where it lies.
        name: What results call it: its file name without `.tar`.
        size_bytes: Its size when it was listed.
        version: The store's tag of its content when it was listed.
    """

    url: str
    name: str
    size_bytes: int
    version: str


def find(patterns: Sequence[str]) -> tuple[ShardFile, ...]:
    """The shards that URLs, brace ranges (`val-{0000..0063}.tar`) and globs name, in the order in which they stand.

    Raises:
        MissingError: A URL names nothing, or a glob matches nothing.
        RecipeError: Two shards would have the same name in the results.
    """
    found: list[ShardFile] = []
    listed: dict[str, dict[str, Stored]] = {}
    for url in (url for pattern in patterns for url in _braces(pattern)):
        folder, name = split(absolute(url))
        if _GLOB.search(folder):
            raise RecipeError(f"shards {url!r}: a wildcard may stand in the file name only")
        if folder not in listed:
            listed[folder] = {item.key: item for item in Storage(folder).list_folder()}
        here = listed[folder]
        matches = [key for key in sorted(here) if fnmatchcase(key, name)] if _GLOB.search(name) else [name]
        if not matches or any(match not in here for match in matches):
            raise MissingError(
                f"shards {url!r}: no such file in {folder} ({len(here)} files there); write a file, a brace range or "
                "a wildcard such as FOLDER/*.tar"
            )
        found += [
            ShardFile(f"{folder}/{match}", shard_name(match), here[match].size_bytes, here[match].version)
            for match in matches
        ]
    seen: dict[str, str] = {}
    for shard in found:
        if shard.name in seen:
            what = "is named twice" if seen[shard.name] == shard.url else f"would be called as {seen[shard.name]}"
            raise RecipeError(f"shards: {shard.url} {what}, {shard.name!r}; leave one out or rename it")
        seen[shard.name] = shard.url
    return tuple(found)


def _braces(pattern: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise RecipeError(f"shards {pattern!r}: its braces do not match") from error


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
            if key != _readable(key):
                raise SampleError("the key is not UTF-8")
            yield Sample(key, _image(record), _label(record, classes))
        except SampleError as error:
            yield Rejected(_readable(key), str(error))
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
        reason = str(error.args[0]).partition(" dict_keys")[0]
        raise ShardError(f"shard {name}: {reason}; make it again") from error


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
            yield Rejected(_readable(member.name), "a link or a device, not a file")
        elif base_plus_ext(member.name)[0] is None:
            yield Rejected(
                _readable(member.name),
                "not a sample: a file is named KEY.EXTENSION, its name does not begin with a dot",
            )


def _readable(name: str) -> str:
    """A name out of a tar as text that can be written again: tarfile turns undecodable bytes into lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode()


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
        RecipeError: The folder holds no labelled images, a listed file is missing, two keys coincide, or shards of
            that name lie in `out` already.
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
    before = [item.key for item in store.list_folder() if fnmatchcase(item.key, f"{name}-*.tar")]
    if before:
        raise RecipeError(f"{store.at(before[0])} exists already; remove it and its like, or give another name")
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
    listed: list[tuple[Path, int]] = []
    left_out = sorted(path for path in folder.iterdir() if path.is_file())
    for label, sub in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(path for path in sub.rglob("*") if path.is_file()):
            if path.suffix[1:].lower() in IMAGE_EXTENSIONS:
                listed.append((path, label))
            else:
                left_out.append(path)
    return listed, left_out


def _from_csv(labels: Path) -> tuple[list[tuple[Path, int]], list[Path]]:
    listed, left_out = [], []
    try:
        text = labels.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{labels}: cannot be read as UTF-8 text ({error})") from error
    with io.StringIO(text, newline="") as file:
        rows = csv.DictReader(file)
        if not {"filename", "label"} <= set(rows.fieldnames or ()):
            raise RecipeError(f"{labels}: expected the columns filename,label; found {','.join(rows.fieldnames or ())}")
        for row in rows:
            path = labels.parent / (row["filename"] or "")
            if not path.resolve().is_relative_to(labels.parent.resolve()) or not path.is_file():
                raise RecipeError(f"{labels} line {rows.line_num}: no file {row['filename']!r} in this folder")
            if not re.fullmatch(r"[0-9]{1,9}", (row["label"] or "").strip()):
                raise RecipeError(f"{labels} line {rows.line_num}: the label {row['label']!r} is no class index")
            if path.suffix[1:].lower() in IMAGE_EXTENSIONS:
                listed.append((path, int(row["label"])))
            else:
                left_out.append(path)
    return listed, left_out
