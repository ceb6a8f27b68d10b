"""Truncated, damaged and hostile tars."""

import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from pipeline.data import shards, tars
from pipeline.errors import ShardError
from tests.data.reading import read
from tests.samples import sample


@pytest.mark.parametrize("cut", ["member boundary", "inside a member", "inside a header", "before the end", "all"])
def test_a_truncated_tar_is_an_error_and_never_fewer_images(cut: str) -> None:
    data = shards.write_tar([sample(index) for index in range(4)])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.getmembers()[4]
        tar.getmembers()
        end = tar.offset
    at = {
        "member boundary": member.offset,
        "inside a member": member.offset_data + 10,
        "inside a header": member.offset + 100,
        "before the end": end + 512,
        "all": 0,
    }[cut]
    with pytest.raises(ShardError, match="test"):
        read(data[:at])


def test_a_damaged_header_is_an_error_although_tarfile_stops_silently() -> None:
    data = bytearray(shards.write_tar([sample(index) for index in range(4)]))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        at = tar.getmembers()[5].offset
    data[at + 3] ^= 0xFF
    assert len(list(webdataset.tariterators.tar_file_iterator(io.BytesIO(bytes(data))))) == 5
    with pytest.raises(ShardError, match="damaged at byte"):
        read(bytes(data))


@pytest.mark.parametrize("junk", [b"", b"not a tar", b"\x1f\x8b" + b"x" * 2000, b"\xff" * 20480])
def test_a_file_that_is_not_a_tar_is_an_error(junk: bytes) -> None:
    with pytest.raises(ShardError):
        read(junk)


def test_a_tar_with_too_many_members_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "_MAX_MEMBERS", 10)
    assert len(read(shards.write_tar([sample(index) for index in range(5)]))) == 5
    with pytest.raises(ShardError, match="test"):
        read(shards.write_tar([sample(index) for index in range(6)]))


def raw_header(name: str, kind: bytes = b"0", size: bytes = b"00000000000\0", *, extended: bytes = b"\0") -> bytes:
    """A header with a right checksum and given fields."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[482:483] = extended
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(body: bytes) -> bytes:
    return raw_header("pax", b"x", b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)


@pytest.mark.parametrize(
    "members",
    [
        raw_header("a", b"L", b"\x80" + (1 << 60).to_bytes(11, "big")),  # tarfile would ask for that much memory
        raw_header("a.jpg", size=b"\xff" * 10 + b"\xfe\x00"),  # CVE-2025-8194: an endless loop
        pax(b"1" * 16_000) + raw_header("a.jpg"),  # CVE-2024-6232: a second for each such header
        pax(b"26 GNU.sparse.realsize=99\n") + raw_header("a.jpg"),  # would read what lies behind it
        raw_header("a.jpg", b"S", extended=b"\1") + b"x",  # goes on, where the file is at its end
        pax(b"9 a=bcde\n") * 500 + raw_header("a.jpg"),
    ],
    ids=["long name", "negative", "digits", "real size", "sparse", "chain"],
)
def test_a_hostile_header_is_an_error_of_the_shard(members: bytes, tmp_path: Path) -> None:
    for end in (bytes(1024), b""):
        with pytest.raises(ShardError, match="test"):
            read(members + end)
        (tmp_path / "downloaded.tar").write_bytes(members + end)
        with (tmp_path / "downloaded.tar").open("rb") as file, pytest.raises(ShardError, match="test"):
            shards.Shard(file, name="test")
