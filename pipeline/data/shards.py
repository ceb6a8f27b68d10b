"""Shards: reading WebDataset tars strictly, and writing them.

WebDataset's own rule groups the members; around it stands the strictness that a results pipeline needs. A tar that was
cut at a member boundary reads everywhere as fewer samples, and a damaged header ends Python's `tarfile` without a word;
here either is an error of that shard. A shard is copied to disk and read sample by sample, so memory does not grow with
it.
"""

import contextlib
import io
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, cast

import webdataset
from webdataset.autodecode import basichandlers
from webdataset.tariterators import base_plus_ext, group_by_keys

from pipeline.data import tars
from pipeline.data.sample import RejectedSample, Sample, ShardFile
from pipeline.errors import SampleError, ShardError, StorageError
from pipeline.storage import Storage, split_url

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm")
# No photograph is larger than this as a file; a tar may claim, or unpack to, anything.
_MAX_MEMBER_BYTES = 1 << 28
# Names that WebDataset reserves: it skips such folders and files, and samples with such an extension.
_RESERVED = re.compile(r"__[^/]*__($|/)")
# A label is a decimal number.
_MAX_LABEL_BYTES = 100
# Extensions of a sample's files that hold a class index → what messages call it.
_CLASS_FILES = {"cls": "label", "target": "target class"}


class Shard:
    """A complete tar: its samples by index, in tar order, each read on request.

    Only the index is kept in memory, so a shard may be larger than memory.

    Args:
        file: The tar, seekable.
        name: Name of the shard in errors.
        sha256: Hash of the tar, where it is known.
        size_bytes: Size of the tar, where it is known.

    Raises:
        ShardError: The tar is truncated or damaged, or holds one file twice.
    """

    def __init__(self, file: BinaryIO, *, name: str, sha256: str = "", size_bytes: int = 0) -> None:
        self.name = name
        self.sha256 = sha256
        self.size_bytes = size_bytes
        self._file = file
        members = tars.read_members(file, name)
        self._records = list(_group_members(members, name))
        self._rejected = list(_rejected_members(members))
        keys = [str(record["__key__"]) for record in self._records]
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        self._repeated = {index for index, key in enumerate(keys) if first[key] != index}

    def __len__(self) -> int:
        return len(self._records) + len(self._rejected)

    def samples(self, indices: Iterable[int], *, classes: int) -> Iterator[Sample | RejectedSample]:
        """Some of the samples, each usable or rejected with a reason.

        Args:
            indices: Indices of the samples, from 0; those beyond the last are ignored.
            classes: Labels must lie in [0, classes).
        """
        for index in indices:
            if index < len(self._records):
                yield self._sample(index, classes)
            elif index < len(self):
                yield self._rejected[index - len(self._records)]

    def records(self) -> Iterator[dict[str, Any]]:
        """The grouped, undecoded samples: `{"__key__": ..., extension: bytes}`."""
        for record in self._records:
            yield {
                name: self._bytes(value) if isinstance(value, tarfile.TarInfo) else value
                for name, value in record.items()
            }

    def _sample(self, index: int, classes: int) -> Sample | RejectedSample:
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
            label, target_class = (self._class(record, name, classes) for name in ("cls", "target"))
            assert label is not None
            return Sample(key, self._bytes(_image(record)), label, target_class)
        except SampleError as error:
            return RejectedSample(_readable(key), str(error))

    def _class(self, record: Mapping[str, Any], extension: str, classes: int) -> int | None:
        """The class index in a sample's file with this extension; None where there is no such file."""
        if extension not in record:
            return None
        member = cast("tarfile.TarInfo", record[extension])
        called = _CLASS_FILES[extension]
        if member.size > _MAX_LABEL_BYTES:
            raise SampleError(f"the {called} is no whole number: it has {member.size:,} bytes")
        return _class_index(self._bytes(member), classes, called=called)

    def _bytes(self, member: tarfile.TarInfo) -> bytes:
        most = _MAX_MEMBER_BYTES
        if member.issparse() or member.size > most:
            raise SampleError(f"{member.size:,} bytes as it would be unpacked: more than {most:,}, or sparse")
        self._file.seek(member.offset_data)
        return self._file.read(member.size)


@contextlib.contextmanager
def download_shard(shard: ShardFile) -> Iterator[Shard]:
    """A shard, copied whole to a temporary file (in `TMPDIR`) while entered.

    Raises:
        ShardError: The tar is truncated or damaged.
        MissingError: There is no such file.
        StorageError: The store failed, or the disk has no room for the shard.
    """
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < shard.size_bytes:
        raise StorageError(
            f"{shard.url}: {shard.size_bytes:,} bytes do not fit into {tempfile.gettempdir()}, where {free:,} are "
            "free; set TMPDIR to a larger disk"
        )
    folder, name = split_url(shard.url)
    with tempfile.TemporaryFile() as file:
        digest = Storage(folder).download(name, file)
        yield Shard(file, name=shard.name, sha256=digest, size_bytes=file.seek(0, io.SEEK_END))


def read_samples(data: bytes, *, name: str, classes: int) -> Iterator[Sample | RejectedSample]:
    """The samples of a tar in memory, in tar order, each usable or rejected with a reason.

    Args:
        data: The whole tar.
        name: Name of the shard in errors.
        classes: Labels must lie in [0, classes).

    Raises:
        ShardError: The tar is truncated or damaged, or holds one file twice.
    """
    shard = Shard(io.BytesIO(data), name=name)
    yield from shard.samples(range(len(shard)), classes=classes)


def read_records(data: bytes, *, name: str) -> Iterator[dict[str, Any]]:
    """The grouped, undecoded samples of a complete tar, in tar order: `{"__key__": ..., extension: bytes}`.

    Raises:
        ShardError: The tar is truncated or damaged, or holds one file twice.
    """
    yield from Shard(io.BytesIO(data), name=name).records()


def _group_members(members: Iterable[tarfile.TarInfo], name: str) -> Iterator[dict[str, Any]]:
    """Members grouped into samples by WebDataset's own rule: `{"__key__": ..., extension: member}`."""
    files = (
        {"fname": member.name, "data": member, "__url__": name}
        for member in members
        if member.isreg()
        and not _RESERVED.match(member.name)
        and not _RESERVED.match(base_plus_ext(member.name)[1] or "")
    )
    try:
        yield from group_by_keys(files)
    except ValueError as error:
        reason = str(error.args[0]).partition(" dict_keys")[0]
        raise ShardError(f"shard {name}: {reason}; make it again") from error


def write_tar(samples: Iterable[Mapping[str, Any]]) -> bytes:
    """A tar of `{"__key__": ..., extension: bytes}` samples; the same samples always give the same bytes."""
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write(dict(sample))
    return buffer.getvalue()


def _rejected_members(members: Iterable[tarfile.TarInfo]) -> Iterator[RejectedSample]:
    """The members that WebDataset skips silently, as rejected samples; without folders and its `__metadata__`."""
    for member in members:
        if member.isdir() or _RESERVED.match(member.name):
            continue
        if not member.isreg():
            yield RejectedSample(_readable(member.name), "a link or a device, not a file")
        elif base_plus_ext(member.name)[0] is None:
            yield RejectedSample(
                _readable(member.name),
                "not a sample: a file is named KEY.EXTENSION, its name does not begin with a dot",
            )
        elif _RESERVED.match(base_plus_ext(member.name)[1]):
            yield RejectedSample(_readable(member.name), "its extension is one that WebDataset keeps for itself")


def _readable(name: str) -> str:
    """A name in a tar as text that can be encoded: tarfile turns undecodable bytes into lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode()


def _image(record: Mapping[str, Any]) -> tarfile.TarInfo:
    for extension in IMAGE_EXTENSIONS:
        if extension in record:
            return cast("tarfile.TarInfo", record[extension])
    raise SampleError(f"no image: none of {', '.join(IMAGE_EXTENSIONS)}")


def _class_index(text: bytes, classes: int, *, called: str) -> int:
    try:
        label = int(basichandlers("cls", text))
    except ValueError:
        raise SampleError(f"the {called} is no whole number: {text[:40]!r}") from None
    if not 0 <= label < classes:
        raise SampleError(f"{called} {label} lies outside 0..{classes - 1}")
    return label
