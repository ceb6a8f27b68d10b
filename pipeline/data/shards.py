"""Shards: where they lie, what is in them, and how they are written.

WebDataset's own rule groups the members; around it stands the strictness that a results pipeline needs. A tar that was
cut at a member boundary reads everywhere as fewer samples, and a damaged header ends Python's `tarfile` without a word;
here either is an error of that shard. A shard is spooled to disk and read sample by sample, so memory does not grow
with it.
"""

import contextlib
import io
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, cast

import braceexpand
import webdataset
from webdataset.autodecode import basichandlers
from webdataset.tariterators import base_plus_ext, group_by_keys

from pipeline.data import tars
from pipeline.data.sample import Rejected, Sample, ShardFile
from pipeline.errors import MissingError, RecipeError, SampleError, ShardError, StorageError
from pipeline.storage import Storage, Stored, absolute, split

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm")
# No photograph is larger than this as a file; a tar may claim, or unpack to, anything.
MOST_BYTES = 1 << 28
_GLOB = re.compile(r"[*?\[]")
# Names that WebDataset keeps for itself: it passes over such folders and files, and a sample with such an extension.
_META = re.compile(r"__[^/]*__($|/)")
# The label is a decimal number.
_MOST_LABEL_BYTES = 100
# The files of a sample that hold a class index, and what that is.
_CLASS_FILES = {"cls": "label", "target": "target class"}


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
            ShardFile(f"{folder}/{match}", shard_name(match), item.size_bytes, item.version, item.modified)
            for match, item in ((match, here[match]) for match in matches)
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


class Shard:
    """A complete tar: its samples by index, in tar order, each read when it is asked for.

    Only the index is held in memory, so a shard may be larger than it.

    Args:
        file: The tar, seekable.
        name: What to call it in errors.
        sha256: Of the tar, where somebody has it.
        size_bytes: Of the tar.

    Raises:
        ShardError: The tar is truncated or damaged, or holds one file twice.
    """

    def __init__(self, file: BinaryIO, *, name: str, sha256: str = "", size_bytes: int = 0) -> None:
        self.name = name
        self.sha256 = sha256
        self.size_bytes = size_bytes
        self._file = file
        members = tars.members(file, name)
        self._records = list(_grouped(members, name))
        self._passed_over = list(_passed_over(members))
        first = {str(record["__key__"]): index for index, record in reversed(list(enumerate(self._records)))}
        self._repeated = {index for index, record in enumerate(self._records) if first[str(record["__key__"])] != index}

    def __len__(self) -> int:
        return len(self._records) + len(self._passed_over)

    def samples(self, indices: Iterable[int], *, classes: int) -> Iterator[Sample | Rejected]:
        """Some of the samples, each usable or rejected with its reason.

        Args:
            indices: Which, from 0; those beyond the last are passed over.
            classes: Labels must lie in [0, classes).
        """
        for index in indices:
            if index < len(self._records):
                yield self._sample(index, classes)
            elif index < len(self):
                yield self._passed_over[index - len(self._records)]

    def records(self) -> Iterator[dict[str, Any]]:
        """The grouped, undecoded samples: `{"__key__": ..., extension: bytes}`."""
        for record in self._records:
            yield {
                name: self._bytes(value) if isinstance(value, tarfile.TarInfo) else value
                for name, value in record.items()
            }

    def _sample(self, index: int, classes: int) -> Sample | Rejected:
        record = self._records[index]
        key = str(record["__key__"])
        try:
            if index in self._repeated:
                raise SampleError("a sample of this key stands earlier in the shard")
            if key.startswith("/") or ".." in key.split("/"):
                raise SampleError("the key points outside its folder")
            if key != _readable(key):
                raise SampleError("the key is not UTF-8")
            if "cls" not in record:
                raise SampleError("no label: no cls")
            label, wanted = (self._class(record, name, classes) for name in ("cls", "target"))
            assert label is not None
            return Sample(key, self._bytes(_image(record)), label, wanted)
        except SampleError as error:
            return Rejected(_readable(key), str(error))

    def _class(self, record: Mapping[str, Any], extension: str, classes: int) -> int | None:
        """The class index in one of a sample's files; None where it has no such file."""
        if extension not in record:
            return None
        member, called = cast("tarfile.TarInfo", record[extension]), _CLASS_FILES[extension]
        if member.size > _MOST_LABEL_BYTES:
            raise SampleError(f"the {called} is no whole number: it has {member.size:,} bytes")
        return _class_index(self._bytes(member), classes, called=called)

    def _bytes(self, member: tarfile.TarInfo) -> bytes:
        if member.issparse() or member.size > MOST_BYTES:
            raise SampleError(f"{member.size:,} bytes as it would be unpacked: more than {MOST_BYTES:,}, or sparse")
        self._file.seek(member.offset_data)
        return self._file.read(member.size)


@contextlib.contextmanager
def spool(shard: ShardFile) -> Iterator[Shard]:
    """A shard, copied whole to a temporary file (in `TMPDIR`) for as long as this is entered.

    Raises:
        ShardError: The tar is truncated or damaged.
        MissingError: It is not there.
        StorageError: The store failed, or the disk has no room for the shard.
    """
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < shard.size_bytes:
        raise StorageError(
            f"{shard.url}: {shard.size_bytes:,} bytes do not fit into {tempfile.gettempdir()}, where {free:,} are "
            "free; set TMPDIR to a larger disk"
        )
    folder, name = split(shard.url)
    with tempfile.TemporaryFile() as file:
        digest = Storage(folder).download(name, file)
        yield Shard(file, name=shard.name, sha256=digest, size_bytes=file.seek(0, io.SEEK_END))


def read(data: bytes, *, name: str, classes: int) -> Iterator[Sample | Rejected]:
    """The samples of a tar in memory, in tar order, each usable or rejected with its reason.

    Args:
        data: The whole tar.
        name: What to call it in errors.
        classes: Labels must lie in [0, classes).

    Raises:
        ShardError: The tar is truncated or damaged, or holds one file twice.
    """
    shard = Shard(io.BytesIO(data), name=name)
    yield from shard.samples(range(len(shard)), classes=classes)


def records(data: bytes, *, name: str) -> Iterator[dict[str, Any]]:
    """The grouped, undecoded samples of a complete tar, in tar order: `{"__key__": ..., extension: bytes}`.

    Raises:
        ShardError: The tar is truncated or damaged, or holds one file twice.
    """
    yield from Shard(io.BytesIO(data), name=name).records()


def _grouped(members: Iterable[tarfile.TarInfo], name: str) -> Iterator[dict[str, Any]]:
    """Members grouped into samples by WebDataset's own rule: `{"__key__": ..., extension: member}`."""
    files = (
        {"fname": m.name, "data": m, "__url__": name}
        for m in members
        if m.isreg() and not _META.match(m.name) and not _META.match(base_plus_ext(m.name)[1] or "")
    )
    try:
        yield from group_by_keys(files)
    except ValueError as error:
        reason = str(error.args[0]).partition(" dict_keys")[0]
        raise ShardError(f"shard {name}: {reason}; make it again") from error


def write(samples: Iterable[Mapping[str, Any]]) -> bytes:
    """A tar of `{"__key__": ..., extension: bytes}` samples; the same samples always give the same bytes."""
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write(dict(sample))
    return buffer.getvalue()


def _passed_over(members: Iterable[tarfile.TarInfo]) -> Iterator[Rejected]:
    """The members that WebDataset passes over without a word, but for folders and its own `__metadata__`."""
    for member in members:
        if member.isdir() or _META.match(member.name):
            continue
        if not member.isreg():
            yield Rejected(_readable(member.name), "a link or a device, not a file")
        elif base_plus_ext(member.name)[0] is None:
            yield Rejected(
                _readable(member.name),
                "not a sample: a file is named KEY.EXTENSION, its name does not begin with a dot",
            )
        elif _META.match(base_plus_ext(member.name)[1]):
            yield Rejected(_readable(member.name), "its extension is one that WebDataset keeps for itself")


def _readable(name: str) -> str:
    """A name out of a tar as text that can be written again: tarfile turns undecodable bytes into lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode()


def _image(record: Mapping[str, Any]) -> tarfile.TarInfo:
    for extension in IMAGE_EXTENSIONS:
        if extension in record:
            return cast("tarfile.TarInfo", record[extension])
    raise SampleError(f"no image: none of {', '.join(IMAGE_EXTENSIONS)}")


def _class_index(written: bytes, classes: int, *, called: str) -> int:
    try:
        label = int(basichandlers("cls", written))
    except ValueError:
        raise SampleError(f"the {called} is no whole number: {written[:40]!r}") from None
    if not 0 <= label < classes:
        raise SampleError(f"{called} {label} lies outside 0..{classes - 1}")
    return label
