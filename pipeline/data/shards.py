"""Shards: reading WebDataset tars strictly, and writing them.

WebDataset's own rule groups the members; around it stands the strictness that a results pipeline needs. A tar that was
cut at a member boundary reads everywhere as fewer samples, and a damaged header ends Python's `tarfile` without a word;
here either is an error of that shard. A shard is copied to disk and read sample by sample, so memory does not grow with
it.
"""

import contextlib
import gzip
import io
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, cast

import webdataset
from webdataset.tariterators import base_plus_ext, group_by_keys

from pipeline.data import tars
from pipeline.data.sample import RejectedSample, Sample, ShardFile
from pipeline.data.sample_fields import image_extension, json_field, listed, require_class, whole_number
from pipeline.errors import SampleError, ShardError, StorageError
from pipeline.storage import Storage, split_url

# No photograph is larger than this as a file; a tar may claim, or unpack to, anything.
_MAX_MEMBER_BYTES = 1 << 28
# Names that WebDataset reserves: it skips such folders and files, and samples with such an extension.
_RESERVED = re.compile(r"__[^/]*__($|/)")
# A label is a decimal number.
_MAX_LABEL_BYTES = 100
# Where a sample's label is, unless a recipe says otherwise: in its file with this extension.
LABEL = "cls"
_TARGET_CLASS = "target"
_MAX_JSON_BYTES = 1 << 24
_GZIP = b"\x1f\x8b"
# A small file can unpack to any size: this much of the disk stays free.
_MIN_FREE_BYTES = 1 << 28


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
        for index in self._repeated:
            if set(_extensions(self._records[index])).isdisjoint(_extensions(self._records[first[keys[index]]])):
                raise ShardError(
                    f"shard {name}: the files of sample {_readable(keys[index])!r} are not next to each other; pack it "
                    "again, sorted: tar --sort=name"
                )

    def __len__(self) -> int:
        return len(self._records) + len(self._rejected)

    def require_samples(self) -> None:
        """Requires that there are any.

        Raises:
            ShardError: It is empty.
        """
        if not len(self):
            raise ShardError(f"shard {self.name}: it holds no samples; leave it out of the recipe")

    def samples(self, indices: Iterable[int], *, classes: int, label: str = LABEL) -> Iterator[Sample | RejectedSample]:
        """Some of the samples, each usable or rejected with a reason.

        Args:
            indices: Indices of the samples, from 0; those beyond the last are ignored.
            classes: Labels must lie in [0, classes).
            label: Where a sample's label is: the extension of a file, or `json:KEY` for a field of a JSON file.
        """
        for index in indices:
            if index < len(self._records):
                yield self._sample(index, classes, label)
            elif index < len(self):
                yield self._rejected[index - len(self._records)]

    def records(self) -> Iterator[dict[str, Any]]:
        """The grouped, undecoded samples: `{"__key__": ..., extension: bytes}`."""
        for record in self._records:
            yield {
                name: self._bytes(value) if isinstance(value, tarfile.TarInfo) else value
                for name, value in record.items()
            }

    def _sample(self, index: int, classes: int, label: str) -> Sample | RejectedSample:
        record = self._records[index]
        key = str(record["__key__"])
        try:
            if index in self._repeated:
                raise SampleError("a sample of this key stands earlier in the shard")
            if key.startswith("/") or ".." in key.split("/"):
                raise SampleError("the key points outside its folder")
            if key != _readable(key):
                raise SampleError("the key is not UTF-8")
            label_class = require_class(self._label(record, label), classes, called="label")
            target_class = None
            if _TARGET_CLASS in record:
                value = self._number(record, _TARGET_CLASS, "target class")
                target_class = require_class(value, classes, called="target class")
            image = cast("tarfile.TarInfo", record[image_extension(_extensions(record))])
            return Sample(key, self._bytes(image), label_class, target_class)
        except SampleError as error:
            return RejectedSample(_readable(key), str(error))

    def _label(self, record: Mapping[str, Any], label: str) -> Any:
        """What a sample has for its label."""
        extension, _, field = label.partition(":")
        if extension not in record:
            files = listed(_extensions(record))
            raise SampleError(f"no label: no {extension}; its files are {files}; data.label says where it is")
        if not field:
            return self._number(record, extension, "label")
        member = cast("tarfile.TarInfo", record[extension])
        if member.size > _MAX_JSON_BYTES:
            raise SampleError(f"no label: its JSON has {member.size:,} bytes: more than {_MAX_JSON_BYTES:,}")
        return json_field(self._bytes(member), field)

    def _number(self, record: Mapping[str, Any], extension: str, called: str) -> Any:
        member = cast("tarfile.TarInfo", record[extension])
        if member.size > _MAX_LABEL_BYTES:
            raise SampleError(f"the {called} is no whole number: it has {member.size:,} bytes")
        return whole_number(self._bytes(member))

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
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as unpacked:
        digest = Storage(folder).download(name, file)
        size_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        packed = is_gzip(file)
        if packed:
            _unpack(file, unpacked, shard.url)
        yield Shard(unpacked if packed else file, name=shard.name, sha256=digest, size_bytes=size_bytes)


def is_gzip(file: BinaryIO) -> bool:
    """Whether a file is compressed, by its first bytes, whatever it is called; leaves it at its beginning."""
    start = file.read(len(_GZIP))
    file.seek(0)
    return start == _GZIP


def _unpack(file: BinaryIO, unpacked: BinaryIO, url: str) -> None:
    """Decompresses a gzip file into another.

    Raises:
        ShardError: It is truncated or damaged.
        StorageError: The disk has no room for what it unpacks to.
    """
    file.seek(0)
    try:
        with gzip.open(file) as stream:
            while piece := stream.read(1 << 20):
                if shutil.disk_usage(tempfile.gettempdir()).free < _MIN_FREE_BYTES:
                    raise StorageError(
                        f"{url}: unpacked, it does not fit into {tempfile.gettempdir()}; set TMPDIR to a larger disk"
                    )
                unpacked.write(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ShardError(f"{url}: not a complete gzip file ({error}); fetch or make it again") from error


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


def _extensions(record: Mapping[str, Any]) -> list[str]:
    return [_readable(name) for name in record if not _RESERVED.match(name)]
