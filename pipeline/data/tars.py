"""Strict reading of tars: all members of a complete archive, or an error, also for hostile archives.

Python's `tarfile` stops silently at a damaged header, and trusts every size and count in a header.
"""

import io
import re
import tarfile
from tarfile import HeaderError
from typing import BinaryIO, Self, cast

from pipeline.errors import ShardError

# A shard of ImageNet has 4,000; the index of more than this would not fit into memory.
_MAX_MEMBERS = 1_000_000
# A path has at most 4,096 bytes.
_MAX_EXTENDED_BYTES = 1 << 14
# tarfile's patterns take quadratic time on these (CVE-2024-6232; fixed in Python 3.11.10 and 3.12.6).
_MANY_DIGITS = re.compile(rb"[0-9]{201}")
_BLOCK = 512
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# Fields of a global header are copied to every member.
_MAX_FIELDS = 100


class _Header(tarfile.TarInfo):
    """A header that is refused where its sizes are not plausible."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDED and header.size > _MAX_EXTENDED_BYTES):
            raise HeaderError(f"a header of type {header.type!r} claims {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        file = cast("BinaryIO", tarfile.fileobj)
        start = file.tell()
        header = cls.frombuf(file.read(_BLOCK), tarfile.encoding or "utf-8", tarfile.errors or "surrogateescape")
        if header.type in _EXTENDED and _MANY_DIGITS.search(file.read(header.size)):
            raise HeaderError("an extended header with a number of more than 200 digits")
        file.seek(start)
        return super().fromtarfile(tarfile)


def read_members(file: BinaryIO, name: str) -> list[tarfile.TarInfo]:
    """The members of a complete tar, which ends with two zero blocks (POSIX.1-1988).

    Raises:
        ShardError: The tar is truncated or damaged.
    """
    members: list[tarfile.TarInfo] = []
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            previous_end = -1
            while (member := tar.next()) is not None:
                # A header with a negative size sends tarfile into an endless loop (CVE-2025-8194).
                if member.size < 0 or not previous_end < tar.offset or len(members) == _MAX_MEMBERS:
                    raise tarfile.ReadError(f"no sane member at byte {member.offset}")
                if tar.offset > size_bytes:
                    raise tarfile.ReadError("unexpected end of data")
                # A pax field can claim more bytes than the archive has for the file.
                if member.isreg() and not member.issparse() and member.offset_data + member.size > tar.offset:
                    raise tarfile.ReadError(f"the member at byte {member.offset} claims {member.size:,} bytes")
                if len(member.pax_headers) > _MAX_FIELDS:
                    raise tarfile.ReadError(f"the member at byte {member.offset} has {len(member.pax_headers)} fields")
                previous_end = tar.offset
                members.append(member)
            end = tar.offset
    # Hostile headers make tarfile raise more than its own errors.
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, LookupError) as error:
        raise ShardError(f"shard {name}: not a complete tar ({error}); fetch or make it again") from error
    _require_end(file, end, name)
    return members


def _require_end(file: BinaryIO, end: int, name: str) -> None:
    """Checks that only zeros follow from `end` on, at least two blocks of them."""
    file.seek(end)
    zeros = 0
    while piece := file.read(1 << 20):
        if piece.strip(b"\0"):
            raise ShardError(f"shard {name}: damaged at byte {end}: no valid header; fetch or make it again")
        zeros += len(piece)
    if zeros < 1024:
        raise ShardError(f"shard {name}: truncated: the end-of-archive blocks are missing; fetch or make it again")
