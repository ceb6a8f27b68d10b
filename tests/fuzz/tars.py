"""Tar archives for the fuzz tests: valid ones, and members whose headers hold anything under a right checksum."""

import io
import random
import tarfile

from hypothesis import strategies as st

from pipeline.data import shards
from tests.fuzz.fuzzing import corrupt, seeds
from tests.samples import jpeg

END = bytes(1024)
NAMES = [
    *(
        "a.jpg",
        "a.cls",
        "b.jpg",
        "b.cls",
        "c.png",
        "a.json",
        "dir/",
        "dir/a.jpg",
        "../x.jpg",
        "/etc/passwd",
        "a.b.c.jpg",
    ),
    *("", ".", "..", "/", ".jpg", "a.", "a..jpg", "__meta__.json", "a.__bad__", "a.__key__", "__x__/a.jpg", "a.CLS"),
    *("\udcff.jpg", "x" * 99, "x" * 5000 + ".jpg", "a\nb.jpg", "a\0b.cls", "é.jpg", "💥.cls"),
]
PAX = [
    *(("path", name) for name in NAMES),
    *(
        ("size", size)
        for size in ("0", "-1", "-512", "3", "600", "1e9", "x", "9" * 30, "9" * 150, "9" * 5000, "1073741824")
    ),
    *(("GNU.sparse.realsize", size) for size in ("0", "99", "-9", "1099511627776", "x", "9" * 5000)),
    *(("GNU.sparse.size", size) for size in ("0", "1099511627776", "x")),
    *(("GNU.sparse.map", pairs) for pairs in ("0,1", "0", "x", "", "0,1099511627776", "-1,-1", "1," * 5000)),
    *(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "a.jpg"), ("GNU.sparse.offset", "0")),
    *(
        ("hdrcharset", "BINARY"),
        ("hdrcharset", "x" * 200),
        ("mtime", "nan"),
        ("mtime", "inf"),
        ("uid", "9" * 5000),
        ("", ""),
    ),
    *(("linkpath", "/etc/passwd"), ("uname", "\udcff"), ("comment", "1" * 9000), ("comment", "x" * 20_000)),
]
SIZES = [
    *(b"00000000000\0", b"00000000003\0", b"00000001000\0", b"77777777777\0", b"           \0", b"junk0000000\0"),
    *(b"\x80" + number.to_bytes(11, "big") for number in (0, 3, 1 << 28, 1 << 40, 1 << 62, 1 << 70, (1 << 88) - 1)),
    *(b"\xff" + (-number % (1 << 88)).to_bytes(11, "big") for number in (1, 512, 1024, 1536, 1 << 62)),
]
TYPES = [*(b"0", b"0", b"0", b"\0", b"x", b"x", b"g", b"X", b"L", b"K", b"S", b"1", b"2", b"3", b"5", b"6", b"7", b"Z")]


def tar_header(
    name: str, size: int = 0, *, kind: bytes = b"0", claimed: bytes | None = None, tail: bytes = b""
) -> bytes:
    """A 512-byte tar header with a right checksum, whatever else is wrong.

    Args:
        name: Member name.
        size: Size field, unless `claimed` is given.
        kind: Type flag.
        claimed: Size field as bytes, which may be invalid.
        tail: Bytes of the sparse map of GNU tar, from offset 386.
    """
    block = bytearray(512)
    encoded = name.encode("utf-8", "surrogateescape")[:100]
    block[: len(encoded)] = encoded
    block[100:124] = b"0000644\0" * 3
    block[124:136] = claimed or b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[386 : 386 + len(tail)] = tail
    return with_checksum(block)


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax_record(keyword: str, value: str) -> bytes:
    body = b" " + keyword.encode() + b"=" + value.encode("utf-8", "surrogateescape") + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def pax_member(*fields: tuple[str, str], kind: bytes = b"x") -> bytes:
    body = b"".join(pax_record(*field) for field in fields)
    return tar_header("pax", len(body), kind=kind) + padded(body)


@st.composite
def composed_tars(draw: st.DrawFn) -> bytes:
    """Tars of one to eight members of any type, each header with a right checksum."""
    rng = random.Random(draw(seeds))
    tar = b""
    for _ in range(draw(st.integers(1, 8))):
        kind = rng.choice(TYPES)
        data = rng.choice((b"", b"3", b"abc", b"9" * 600, jpeg(0)[:700], b"2\n0\n3\n" + b"x" * 510, b"9" * 6000))
        claimed = rng.choice(SIZES) if rng.random() < 0.2 else None
        if kind in (b"x", b"g", b"X"):
            fields = [rng.choice(PAX) for _ in range(rng.choice((1, 1, 2, 5)))]
            data = b"".join(pax_record(*field) for field in fields)
            if rng.random() < 0.1:
                data = rng.choice((b"0 a=b\n", b"9999999 a=b\n", b"1 a=b\n", b"1" * 9000, b"6 =\n", b"=" * 600))
        elif kind in (b"L", b"K"):
            data = rng.choice(NAMES).encode("utf-8", "surrogateescape") + b"\0"
        size = 0 if kind in (b"1", b"2", b"3", b"5", b"6") and rng.random() < 0.8 else len(data)
        tail = b""
        if kind == b"S":
            numbers = (0, 3, 3, 1 << 40, 0, 0, 0, 0)
            tail = b"".join(b"%011o\0" % number if number < 8**11 else b"\0" * 12 for number in numbers)
            tail += rng.choice((b"\0", b"\1")) + rng.choice(SIZES)
        piece = tar_header(rng.choice(NAMES), size, kind=kind, claimed=claimed, tail=tail) + padded(
            data if size else b""
        )
        tar += piece * rng.choice((1,) * 30 + (2, 2, 2, 400 if len(piece) < 2000 else 2))
    return tar + draw(st.sampled_from([END, END, END, bytes(512), b"", END + b"x", bytes(10240)]))


def valid_tars() -> list[bytes]:
    small = [{"__key__": f"k{i}", "jpg": b"\xff\xd8" + bytes(i * 300), "cls": str(i).encode()} for i in range(3)]
    long = io.BytesIO()
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(fileobj=long, mode="w", format=form) as tar:
            for name in ("x" * 150 + ".jpg", "x" * 150 + ".cls", "é" * 60 + ".jpg"):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = 3, 1.5  # a fraction of a second takes a pax header
                tar.addfile(info, io.BytesIO(b"123"))
    return [
        shards.write_tar(small),
        long.getvalue(),
        shards.write_tar([{"__key__": "k", "png": b"x", "cls": b"1", "json": b"{}"}]),
    ]


TARS = valid_tars()


@st.composite
def corrupted_tars(draw: st.DrawFn) -> bytes:
    """A valid tar after random edits, often with one header field replaced under a right checksum."""
    rng = random.Random(draw(seeds))
    data = bytearray(corrupt(rng.choice(TARS), rng, TARS))
    if len(data) >= 512 and rng.random() < 0.6:  # with a right checksum, so that readers believe the field
        offset = 512 * rng.randrange(len(data) // 512)
        start, end = rng.choice(((0, 100), (124, 136), (124, 136), (156, 157), (257, 265), (345, 500)))
        value = rng.choice((rng.choice(SIZES), rng.randbytes(200)))[: end - start]
        data[offset + start : offset + end] = value.ljust(end - start, b"\0")
        data[offset : offset + 512] = with_checksum(data[offset : offset + 512])
    return bytes(data)
