"""Tars, strictly: the members of a complete archive, or an error; whatever a hostile one claims.

Python's `tarfile` ends at a damaged header without a word, and believes what headers say of themselves.
"""

import io
import re
import tarfile
from tarfile import HeaderError
from typing import BinaryIO, Self, cast

from pipeline.errors import ShardError

# A shard of ImageNet has 4,000; an index of more would not fit into memory.
_MOST_MEMBERS = 1_000_000
# A path has at most 4,096 bytes.
_MOST_EXTENDED_BYTES = 1 << 14
# What tarfile's patterns take quadratic time to read (CVE-2024-6232; mended in Python 3.11.10 and 3.12.6).
_MANY_DIGITS = re.compile(rb"[0-9]{201}")
_BLOCK = 512
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# Every member carries a copy of them.
_MOST_GLOBAL_FIELDS = 100


class _Header(tarfile.TarInfo):
    """A header whose own claims are believed only as far as they are sane."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDED and header.size > _MOST_EXTENDED_BYTES):
            raise HeaderError(f"a header of type {header.type!r} claims {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        file = cast("BinaryIO", tarfile.fileobj)
        at = file.tell()
        header = cls.frombuf(file.read(_BLOCK), tarfile.encoding or "utf-8", tarfile.errors or "surrogateescape")
        if header.type in _EXTENDED and _MANY_DIGITS.search(file.read(header.size)):
            raise HeaderError("an extended header with a number of more than 200 digits")
        file.seek(at)
        return super().fromtarfile(tarfile)


def members(file: BinaryIO, name: str) -> list[tarfile.TarInfo]:
    """The members of a tar that they fill up to its end-of-archive of two zero blocks (POSIX.1-1988).

    Raises:
        ShardError: The tar is truncated or damaged.
    """
    members: list[tarfile.TarInfo] = []
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            at = -1
            while (member := tar.next()) is not None:
                # A header with a negative size leads tarfile round in a circle for ever (CVE-2025-8194).
                if member.size < 0 or not at < tar.offset or len(members) == _MOST_MEMBERS:
                    raise tarfile.ReadError(f"no sane member at byte {member.offset}")
                if tar.offset > size_bytes:
                    raise tarfile.ReadError("unexpected end of data")
                # A pax field can say that a file is longer than what lies there for it.
                if member.isreg() and not member.issparse() and member.offset_data + member.size > tar.offset:
                    raise tarfile.ReadError(f"the member at byte {member.offset} claims {member.size:,} bytes")
                if len(member.pax_headers) > _MOST_GLOBAL_FIELDS:
                    raise tarfile.ReadError(f"the member at byte {member.offset} has {len(member.pax_headers)} fields")
                at = tar.offset
                members.append(member)
            end = tar.offset
    # Hostile headers make tarfile raise more than its own errors.
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, LookupError) as error:
        raise ShardError(f"shard {name}: not a complete tar ({error}); fetch or make it again") from error
    _require_end(file, end, name)
    return members


def _require_end(file: BinaryIO, end: int, name: str) -> None:
    """Checks that nothing but zeros, and at least two blocks of them, stands from `end` on."""
    file.seek(end)
    zeros = 0
    while piece := file.read(1 << 20):
        if piece.strip(b"\0"):
            raise ShardError(f"shard {name}: damaged at byte {end}: no valid header; fetch or make it again")
        zeros += len(piece)
    if zeros < 1024:
        raise ShardError(f"shard {name}: truncated: the end-of-archive blocks are missing; fetch or make it again")
