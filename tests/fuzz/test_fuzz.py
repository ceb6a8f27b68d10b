"""Bad input to every reader: nothing but the library's own errors may come out, in little time and memory.

Inputs begin as sound ones and are then spoilt, so that they reach the code behind the first check. How many were tried
is told at the end of the run.
"""

import contextlib
import io
import json
import pickle
import random
import struct
import tarfile
import tempfile
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as save_safetensors

from pipeline import storage
from pipeline.data import parts, shards
from pipeline.data.codec import Preparation, decode
from pipeline.data.sample import Part, Rejected, Sample
from pipeline.errors import GnpError, ShardError
from pipeline.ledger import Failure, Ledger, Unit, leases
from pipeline.models import load
from pipeline.plan import recipe as config
from pipeline.results import schema
from pipeline.storage import Storage
from tests.conftest import TRIED
from tests.samples import jpeg

pytestmark = pytest.mark.timeout(300)

# The longest that one input may take; the slowest sound one takes a tenth of it.
_MOST_S = 5.0
_END = bytes(1024)
DETONATED: list[str] = []


def inputs(count: int) -> settings:
    """The same inputs in every run: what CI finds, anyone finds."""
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


@contextlib.contextmanager
def only_our_errors(reader: str) -> Iterator[None]:
    TRIED[reader] += 1
    start = time.process_time()
    with contextlib.suppress(GnpError):
        yield
    assert time.process_time() - start < _MOST_S


# Spoilt bytes

seeds_of_draws = st.integers(0, 2**32)


def spoil(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """A sound file after a few accidents."""
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(spoilt) + 1)
        until = min(len(spoilt), at + rng.choice((1, 4, 30, 512, 2000)))
        other = rng.choice(others)
        how = rng.randrange(9)
        if how == 0 and at < len(spoilt):
            spoilt[at] ^= 1 << rng.randrange(8)
        elif how == 1 and at < len(spoilt):
            spoilt[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif how == 2:
            del spoilt[at:]
        elif how == 3:
            del spoilt[at:until]
        elif how == 4:
            spoilt[at:at] = spoilt[at:until]
        elif how == 5:
            spoilt[at:until] = rng.randbytes(until - at)
        elif how == 6:
            spoilt[at:until] = bytes(until - at)
        elif how == 7:
            spoilt[at:] = other[rng.randrange(len(other)) :]
        elif how == 8 and at + 4 <= len(spoilt):
            number = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
            spoilt[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
    return bytes(spoilt)


# Recipes

RECIPE: dict[str, Any] = {
    "sources": [
        "resnet50.tv_in1k",
        {"name": "both", "ensemble": ["resnet50.tv_in1k", {"model": "vgg19_bn.tv_in1k"}], "fuse": "losses"},
    ],
    "targets": ["vgg19_bn.tv_in1k", {"model": "inception_v3.tv_in1k", "policy": "crop", "name": "wide"}],
    "attacks": [
        "mi",
        {"attack": "noise", "epsilon": "8/255"},
        {"attack": "gnp+mi", "name": "x", "steps": 20, "decay": 0.9, "gnp": {"form": "exact", "r": 0.01, "beta": 0.8}},
        {
            "attack": "rap+ni+di+ti",
            "name": "y",
            "norm": "l2",
            "epsilon": 3,
            "loss": "logit",
            "target_class": "random",
            "ti": {"kernel": "linear", "size": [5, 7]},
            "rap": {"steps": 4},
            "di": {"variant": "no-resize-back"},
        },
        {"attack": "pgn+mi+admix+si", "name": "z", "admix": {"share": [0.1, 0.2]}, "target_class": 3},
    ],
    "batch_size": 8,
    "data": {
        "name": "val",
        "shards": "s3://bucket/val-{0000..0063}.tar",
        "part_size": 64,
        "fraction": 0.5,
        "limit": 100,
        "preparation": {"resize": 256, "crop": 224, "interpolation": "bicubic"},
    },
    "budget": {"epsilon": ["8/255", "16/255"], "steps": [10, 20], "seed": 3},
    "engine": {"generators": "auto", "gpus_per_generator": 0.5, "cpus_per_worker": 2, "item_minutes": 3.5},
}


def own() -> dict[str, Any]:
    return {
        "model": "tf_efficientnet_lite0",
        "name": "own",
        "checkpoint": "x.safetensors",
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 1, 1],
        "input_size": 224,
    }


class Raw(str):
    """TOML as it is to stand."""

    __slots__ = ()


hostile = st.one_of(
    st.sampled_from(
        [
            *("0", "-1", "1", "10", "99999999999999999999", "9" * 5000, "-0x1", "0x" + "f" * 5000, "1_000", "0b1" * 9),
            *("nan", "inf", "-inf", "1e400", "1e-400", "-0.0", "0.1", "1e308", "3.5", "true", "false"),
            *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "[]", "{}", "[[]]", "[1]", "{a = 1}", '[""]', "''"),
            *('"1e999999999"', '"1/0"', '"0/1"', '"16/255"', '"10"', '" 1 "', '"1_0"', '"-1"', '"٣"', '"1e-5"', '"½"'),
            *(
                '"nan"',
                '"auto"',
                '"i"',
                '"gnp"',
                '"mi+mi"',
                '"gnp+gnp+mi"',
                '"noise+mi"',
                '"crop"',
                '"' + "+" * 999 + '"',
            ),
            *(
                '"\\u0000"',
                '"a\\nb"',
                '"\\u001b[31m"',
                '"💥"',
                '"../../etc"',
                '"~\\u0000/x"',
                '"{1..9}"',
                '"hf-hub:a/b"',
            ),
            *('"resnet50"', '"torchvision/resnet50"', '"torchvision/"', '"' + "a" * 100_000 + '"', '"s3://"', '"%"'),
            *("[" * 60 + "]" * 60, "[" * 2000 + "]" * 2000, "{a = " * 60 + "1" + "}" * 60, '{model = "x", model = 1}'),
            '{model = "resnet50.tv_in1k", name = ["x"]}',
            '{attack = "gnp+mi", gnp = {r = "0.1"}}',
        ]
    ).map(Raw),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.builds(own),
)
odd_keys = st.one_of(
    st.sampled_from(
        ["epsilom", "name", "model", "gnp", "steps", "a.b.c", "", "\n", "é", "0", "__class__", ".".join("a" * 50)]
    ),
    st.text(max_size=8),
)


def toml(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value) if isinstance(value, (int, float)) else json.dumps(value)


def document(recipe: dict[str, Any]) -> str:
    return "".join(
        f"{key if isinstance(key, Raw) else json.dumps(key)} = {toml(item)}\n" for key, item in recipe.items()
    )


@st.composite
def recipes(draw: st.DrawFn) -> str:
    recipe = json.loads(json.dumps(RECIPE))
    for _ in range(draw(st.integers(0, 3))):
        here: Any = recipe
        while True:
            places = list(here) if isinstance(here, dict) else list(range(len(here)))
            place = draw(st.sampled_from(places)) if places else None
            if place is None or not isinstance(here[place], (dict, list)) or draw(st.integers(0, 3)) == 0:
                break
            here = here[place]
        how = draw(st.integers(0, 4))
        if place is None or how == 0:
            if isinstance(here, dict):
                here[draw(odd_keys)] = draw(hostile)
            else:
                here.append(draw(hostile))
        elif how == 1:
            del here[place]
        elif how == 2 and isinstance(here, list):
            here.append(here[place])
        else:
            here[place] = draw(hostile)
    text = document(recipe)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(text)))
        until = at + draw(st.integers(0, 20))
        text = (
            text[:at]
            + draw(st.sampled_from(["", "\n", '"""', "[[", "=", "\0", "\ud800", "a." * 3000, "# "]))
            + text[until:]
        )
    return text


@pytest.fixture(scope="module")
def _known_models_once() -> Iterator[None]:
    """Timm lists its thousand tags anew at every call, which takes longer than all else in a recipe."""
    tags, names = timm.list_pretrained(), timm.list_models()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "list_pretrained", lambda: tags)
        patch.setattr(timm, "list_models", lambda: names)
        yield


@pytest.mark.usefixtures("_known_models_once")
@inputs(3000)
@given(recipes())
def test_a_recipe_is_read_or_refused_by_line(text: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml", dir=scratch()) as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        with only_our_errors("recipes"):
            try:
                json.dumps(asdict(config.load(Path(file.name)).job()), default=str)
            except GnpError as error:
                for line in str(error).split("\n"):
                    assert line.startswith(file.name)
                    assert line.isprintable()
                raise


# Tars

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


def header(name: str, size: int = 0, *, kind: bytes = b"0", claimed: bytes | None = None, tail: bytes = b"") -> bytes:
    """A block as tar has it, with a right checksum whatever else is wrong."""
    block = bytearray(512)
    written = name.encode("utf-8", "surrogateescape")[:100]
    block[: len(written)] = written
    block[100:124] = b"0000644\0" * 3
    block[124:136] = claimed or b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[386 : 386 + len(tail)] = tail
    return checked(block)


def checked(block: bytearray) -> bytes:
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


def pax(*fields: tuple[str, str], kind: bytes = b"x") -> bytes:
    body = b"".join(pax_record(*field) for field in fields)
    return header("pax", len(body), kind=kind) + padded(body)


@st.composite
def composed_tars(draw: st.DrawFn) -> bytes:
    """Members of any kind in any order, each header's checksum right."""
    rng = random.Random(draw(seeds_of_draws))
    made = b""
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
        piece = header(rng.choice(NAMES), size, kind=kind, claimed=claimed, tail=tail) + padded(data if size else b"")
        made += piece * rng.choice((1,) * 30 + (2, 2, 2, 400 if len(piece) < 2000 else 2))
    return made + draw(st.sampled_from([_END, _END, _END, bytes(512), b"", _END + b"x", bytes(10240)]))


def sound_tars() -> list[bytes]:
    small = [{"__key__": f"k{i}", "jpg": b"\xff\xd8" + bytes(i * 300), "cls": str(i).encode()} for i in range(3)]
    long = io.BytesIO()
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(fileobj=long, mode="w", format=form) as tar:
            for name in ("x" * 150 + ".jpg", "x" * 150 + ".cls", "é" * 60 + ".jpg"):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = 3, 1.5  # a fraction of a second takes a pax header
                tar.addfile(info, io.BytesIO(b"123"))
    return [
        shards.write(small),
        long.getvalue(),
        shards.write([{"__key__": "k", "png": b"x", "cls": b"1", "json": b"{}"}]),
    ]


TARS = sound_tars()


@st.composite
def spoilt_tars(draw: st.DrawFn) -> bytes:
    rng = random.Random(draw(seeds_of_draws))
    data = bytearray(spoil(rng.choice(TARS), rng, TARS))
    if len(data) >= 512 and rng.random() < 0.6:  # a checksum made right again, so that the field is believed
        at = 512 * rng.randrange(len(data) // 512)
        field = rng.choice(((0, 100), (124, 136), (124, 136), (156, 157), (257, 265), (345, 500)))
        data[at + field[0] : at + field[1]] = rng.choice((rng.choice(SIZES), rng.randbytes(200)))[
            : field[1] - field[0]
        ].ljust(field[1] - field[0], b"\0")
        data[at : at + 512] = checked(data[at : at + 512])
    return bytes(data)


def read_tar(data: bytes) -> None:
    """From a real file, as a spooled shard is, and out of memory."""
    with tempfile.TemporaryFile(dir=scratch()) as file:
        file.write(data)
        with only_our_errors("tars"):
            shard = shards.Shard(file, name="fuzz")
            found = list(shard.samples(range(len(shard) + 1), classes=10))
            assert len(found) == len(shard)
            assert list(shards.read(data, name="fuzz", classes=10)) == found
            for each in found:
                assert isinstance(each, (Sample, Rejected))
                each.key.encode()
                if isinstance(each, Sample):
                    assert len(each.image) <= len(data)
                    assert 0 <= each.label < 10
                    assert ".." not in each.key.split("/")
                    assert not each.key.startswith("/")
            list(shards.records(data, name="fuzz"))


@inputs(2000)
@given(composed_tars())
def test_a_tar_of_hostile_members_is_read_or_refused(data: bytes) -> None:
    read_tar(data)


@inputs(1500)
@given(spoilt_tars())
def test_a_spoilt_tar_is_read_or_refused(data: bytes) -> None:
    read_tar(data)


# Images


def sound_images() -> list[bytes]:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (24, 20), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((colour.convert(mode), "PNG", {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
        *((colour.convert(mode), "JPEG", {}) for mode in ("RGB", "L", "CMYK")),
        *((colour.convert(mode), "BMP", {}) for mode in ("RGB", "RGBA", "L", "P", "1")),
        *((colour.convert(mode), "PPM", {}) for mode in ("RGB", "L", "1")),
        *((colour.convert(mode), "WEBP", {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (0, 1)),
        (deep, "PNG", {}),
        (deep, "PPM", {}),
        (colour, "JPEG", {"progressive": True, "exif": exif, "icc_profile": b"no profile"}),
        (colour, "PNG", {"save_all": True, "append_images": [colour.rotate(90), colour], "exif": exif}),
        (colour, "WEBP", {"save_all": True, "append_images": [colour.rotate(90)], "exif": exif}),
        (colour.quantize(4), "PNG", {"transparency": 1, "bits": 2}),
    ]
    encoded = []
    for image, form, options in made:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        encoded.append(buffer.getvalue())
    return encoded


IMAGES = sound_images()
# Sixteen megabytes of nothing, as a decompressor finds them.
INFLATED = zlib.compress(bytes(1 << 24))
# Each alone, and any two multiplied, is either small or refused.
SIDES = (0, 1, 2, 20, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def redeclared(data: bytes, rng: random.Random) -> bytes:
    """The same pixels under a header that claims another size, depth or kind, and is otherwise right."""
    width, height = rng.choice(SIDES), rng.choice(SIDES)
    if data.startswith(b"\x89PNG"):
        head = bytearray(data[16:29])
        head[:8] = struct.pack(">II", width, height)
        if rng.random() < 0.5:
            head[8:13] = bytes(rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)) for _ in range(5))
        extra = [b"", chunk(b"PLTE", rng.randbytes(770)), chunk(b"tRNS", rng.randbytes(300)), chunk(b"IEND", b"")]
        extra += [chunk(b"zTXt", b"k\0\0" + INFLATED), chunk(b"acTL", rng.randbytes(8))]
        extra += [chunk(b"iCCP", b"k\0\0" + INFLATED), chunk(b"eXIf", rng.randbytes(50))]
        return data[:8] + chunk(b"IHDR", bytes(head)) + rng.choice(extra) + data[33:]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<II", width, height) + data[26:]
    if data[:1] == b"P":
        numbers = [str(number).encode() for number in (width, height, rng.choice((0, 1, 255, 65535, 65536, 10**9)))]
        kind = rng.choice((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"P7", b"PF", b"Py"))
        return kind + b"\n" + rng.choice((b" ", b"\n", b"# x\n", b"\n" * 99)).join(numbers) + b"\n" + data[15:]
    at = data.find(b"\xff\xc0")
    if at > 0:
        return data[: at + 5] + struct.pack(">HH", height % 65536, width % 65536) + data[at + 9 :]
    return data[:20] + rng.randbytes(10) + data[30:]


@inputs(2600)
@given(seeds_of_draws)
def test_a_spoilt_image_is_decoded_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    data = rng.choice(IMAGES)
    if rng.random() < 0.4:
        data = redeclared(data, rng)
    if rng.random() < 0.7:
        data = spoil(data, rng, IMAGES)
    preparation = rng.choice((None, Preparation(16, 16), Preparation(64, 48, "bicubic"), Preparation(0, 5)))
    with only_our_errors("images"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PIL only warns of is decoded all the same
        pixels = decode(data, preparation)
        assert pixels.dtype == torch.uint8
        assert pixels.shape[0] == 3
        assert preparation is None or pixels.shape[1:] == (preparation.crop, preparation.crop)


# Records

UNIT = Unit("data-0", Part("s", 0, 1), source="net-1", attack="mi-2")
RECORDS: dict[str, dict[str, Any]] = {
    UNIT.marker: {
        "unit": asdict(UNIT),
        "object": f"{UNIT.data}-0123456789abcdef.tar",
        "sha256": "0" * 64,
        "size_bytes": 3,
        "facts": {"n": 3, "rejected": [["a", "b"]]},
    },
    "plans/{}.json": {"dataset": "d", "shards": ["s"], "sources": ["n"], "attacks": ["a"], "targets": ["t"]},
    "failures/p/net/s/0-1.json": asdict(Failure("p", "net", "s", 0, 1, "tag", "s from net", "it broke", 3, "run")),
    "runs/other.json": {"plan": "p", "state": "running", "host": "h", "pid": 1, "items": 3, "seconds": 1.5},
    "claims/p/net/s/00000000.json": {"run": "other"},
}
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**63,
        2**70,
        -(2**100),
        10**4000,
        0.5,
        1e308,
        "",
        "x",
        "\ud800",
        "\0",
        "../../x",
        "\u202e",
    ),
    *(
        [],
        {},
        [[]],
        {"a": {}},
        "9" * 10_000,
        [1, "a", None],
        {"part": {}},
        f"{UNIT.data}-/../../../x",
        "running",
        "other",
    ),
]
SPELLINGS = [
    b"NaN",
    b"Infinity",
    b"-1e999",
    b"9" * 5000,
    b"[" * 900 + b"]" * 900,
    b"[" * 200_000,
    b'{"a":' * 3000,
    b'"\\ud800"',
]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def record_bytes(sound: dict[str, Any], rng: random.Random) -> bytes:
    record = json.loads(json.dumps(sound))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        here = record
        while True:
            place = rng.choice(list(here))
            if not isinstance(here[place], dict) or not here[place] or rng.random() < 0.5:
                break
            here = here[place]
        how = rng.randrange(4)
        if how == 0:
            del here[place]
        elif how == 1:
            here[rng.choice(("x", "", "unit", "seal", "run", "part"))] = rng.choice(VALUES)
        else:
            here[place] = rng.choice([*VALUES, nested(rng.choice((50, 400)))])
        if not here:
            break
    record.pop("seal", None)
    data = json.dumps({**record, "seal": storage.seal(record)}).encode()
    chance = rng.random()
    if chance < 0.25:
        return spoil(data, rng, [data])
    if chance < 0.35:
        return data.replace(b"3", rng.choice(SPELLINGS), 1)
    if chance < 0.4:
        return rng.choice(
            (rng.choice(SPELLINGS), data.decode().encode("utf-16"), b"\xef\xbb\xbf" + data, b"[]", b"null", b"")
        )
    return data


def scratch() -> str | None:
    """Memory, where the machine has such a folder: nothing here is to outlast the test."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        yield Ledger(Storage(folder))


@inputs(2600)
@given(seed=seeds_of_draws)
def test_a_spoilt_record_is_read_or_refused(ledger: Ledger, seed: int) -> None:
    rng = random.Random(seed)
    key, sound = rng.choice(list(RECORDS.items()))
    data = record_bytes(sound, rng)
    if key.startswith("plans"):
        key = "plans/000000000000.json"
    path = Path(ledger.storage.at(key))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        for reader in readers(ledger, key):
            with only_our_errors("records"):
                reader()
            TRIED["records"] -= 1
        TRIED["records"] += 1
    finally:
        for stored in list(ledger.storage.list()):
            Path(ledger.storage.at(stored.key)).unlink()


def readers(ledger: Ledger, key: str) -> list[Callable[[], object]]:
    """All that reads a record of this kind."""
    store = ledger.storage
    record: Callable[[], object] = lambda: store.record(key)  # noqa: E731
    if key == UNIT.marker:
        return [
            record,
            lambda: ledger.read(ledger.marker(UNIT)),
            lambda: list(ledger.markers(ledger.units("adversarial"))),
        ]
    if key.startswith("plans"):
        return [record, lambda: ledger.plan(key)]
    if key.startswith("failures"):
        return [record, lambda: [failure.key for failure in ledger.failures()]]
    store.put_record("runs/own.json", {"plan": "p", "state": "running", "host": "h", "pid": 1}, once=False)
    if key.startswith("runs"):
        store.put_record("claims/p/net/s/00000000.json", {"run": "other"})
    return [
        record,
        lambda: [(run.live, run.here, leases.bury(store, run)) for run in leases.seen(store, now=time.time())],
        lambda: leases.claim(store, "p/net/s", "own"),
    ]


# Stored parts, results, checkpoints


def sound_parts() -> list[bytes]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), 77).save(buffer, "PNG")
    images = [{"__key__": f"k{index}", "png": buffer.getvalue(), "cls": b"1"} for index in range(2)]
    return [shards.write(images), shards.write([{**image, "json": b"{}"} for image in images])]


PARTS = sound_parts()


@inputs(400)
@given(seeds_of_draws)
def test_a_spoilt_part_is_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    data = spoil(rng.choice(PARTS), rng, [*PARTS, *TARS])
    with only_our_errors("parts"):
        images = parts.read(data, name="fuzz")
        assert len(images.keys) == len(images.labels) == len(images.pixels)


def sound_results() -> list[bytes]:
    shared = {"dataset": "d", "shard": "s", "part": 0, "key": [f"k{i}" for i in range(20)], "label": list(range(20))}
    target = {"target": "t", "target_id": "t-0", "policy": "direct", "weights_sha256": "0", "pixels_sha256": ["0"] * 20}
    scored = {"defense": "", "prediction": 3, "label_probability": 0.5, "abstained": False}
    attack = {
        "source": "n",
        "source_id": "n-0",
        "attack": "a",
        "attack_id": "a-0",
        "epsilon": 0.1,
        "norm": "l2",
        "target_class": None,
    }
    return [
        schema.write(schema.table(schema.CLEAN, {**shared, **target, **scored})),
        schema.write(schema.table(schema.TRANSFER, {**shared, **target, **scored, **attack})),
    ]


RESULTS = sound_results()


@inputs(400)
@given(seeds_of_draws)
@example(510510)  # a column's name that is no UTF-8
def test_spoilt_results_are_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    data = spoil(rng.choice(RESULTS), rng, RESULTS)
    with only_our_errors("results"):
        schema.read(data, name="fuzz").to_pydict()


def detonate(what: str) -> None:
    DETONATED.append(what)


class Hostile:
    """What runs code as soon as it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


_GO_OFF = f"__import__('sys').modules[{__name__!r}].detonate('x')"
BOMBS = [Hostile(detonate, "x"), Hostile(eval, _GO_OFF), Hostile(exec, _GO_OFF)]


def sound_checkpoints() -> list[tuple[str, bytes]]:
    state = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2, dtype=torch.float16)}
    made: list[tuple[str, bytes]] = [(".safetensors", save_safetensors(state))]
    contents: list[Any] = [
        state,
        {"state_dict": state, "epoch": 3},
        [1, 2],
        {"a": 1},
        {1: torch.ones(1), "b": torch.ones(1)},
        3,
    ]
    contents += [BOMBS[0], {"state_dict": {"a": BOMBS[1]}}, [BOMBS[2]], {"state_dict": 3}, {"a": {"b": torch.ones(2)}}]
    for content in contents:
        for legacy in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
            made.append((".pth", buffer.getvalue()))
        if not any(content is each for each in (state, contents[1])):
            made.append((".pth", pickle.dumps(content)))
    return made


@inputs(500)
@given(seed=seeds_of_draws)
def test_a_spoilt_checkpoint_is_read_or_refused_and_never_executed(ledger: Ledger, seed: int) -> None:
    rng = random.Random(seed)
    suffix, data = rng.choice(CHECKPOINTS)
    if rng.random() < 0.7:
        data = spoil(data, rng, [other for _, other in CHECKPOINTS])
    path = Path(ledger.storage.at(f"checkpoint{suffix}"))
    path.write_bytes(data)
    with only_our_errors("checkpoints"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of kinds of tensor that it is about to drop
        for name, tensor in load._read_state(str(path)).items():
            assert isinstance(name, str)
            assert isinstance(tensor, torch.Tensor)
    assert DETONATED == []


CHECKPOINTS = sound_checkpoints()


@pytest.mark.parametrize("bomb", BOMBS, ids=["function", "eval", "exec"])
def test_the_bombs_are_live(bomb: Hostile) -> None:
    """Or else that none goes off above would say nothing."""
    pickle.loads(pickle.dumps(bomb))
    assert DETONATED.pop() == "x"


# Examples of what would take gigabytes


@pytest.mark.parametrize(
    "data",
    [
        pax(("GNU.sparse.map", "0,3"), ("GNU.sparse.size", str(1 << 40))) + header("a.jpg", 3) + padded(b"abc") + _END,
        header("a.jpg", 3, kind=b"S", tail=b"00000000000\0" * 8 + b"\0" + SIZES[9]) + padded(b"abc") + _END,
        header("a.jpg", claimed=SIZES[9]) + _END,
        header("a", kind=b"L", claimed=SIZES[10]) + padded(b"a.jpg") + header("a.jpg") + _END,
        pax(("size", str(1 << 62))) + header("a.jpg") + _END,
        pax(("GNU.sparse.realsize", str(1 << 28))) + header("a.jpg") + _END,
    ],
    ids=["sparse by pax", "sparse", "size", "long name", "size by pax", "real size by pax"],
)
def test_a_member_that_claims_a_terabyte_takes_no_memory(data: bytes) -> None:
    with tempfile.TemporaryFile() as file, traced() as peak:
        file.write(data)
        try:
            shard = shards.Shard(file, name="huge")
            found = list(shard.samples(range(len(shard)), classes=10))
            assert all(isinstance(each, Rejected) for each in found)
        except ShardError:
            pass
    assert peak() < 1 << 22


def test_a_label_of_two_hundred_megabytes_is_refused_unread() -> None:
    with tempfile.TemporaryFile() as file, traced() as peak:
        file.write(header("a.jpg", 3) + padded(b"abc") + header("a.cls", 200 << 20))
        file.seek(200 << 20, io.SEEK_CUR)
        file.write(_END)
        (found,) = shards.Shard(file, name="huge").samples(range(2), classes=10)
    assert isinstance(found, Rejected)
    assert "it has 209,715,200 bytes" in found.reason
    assert peak() < 1 << 23  # the end of the archive is read by the megabyte


@contextlib.contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """How much Python's own memory was taken at most, in bytes, once it is left."""
    tracemalloc.start()
    found = [0]
    try:
        yield lambda: found[0]
    finally:
        found[0] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
