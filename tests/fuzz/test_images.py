"""Fuzzed image files: each is decoded or refused."""

import io
import random
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

from pipeline.data.codec import Preparation, decode
from tests.fuzz.fuzzing import corrupt, fuzz_settings, only_gnp_errors, seeds

pytestmark = pytest.mark.timeout(300)


def valid_images() -> list[bytes]:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (24, 20), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    images: list[tuple[Image.Image, str, dict[str, Any]]] = [
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
    for image, form, options in images:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        encoded.append(buffer.getvalue())
    return encoded


IMAGES = valid_images()
# Sixteen megabytes of zeros, compressed.
INFLATED = zlib.compress(bytes(1 << 24))
# Widths and heights: any two make an image that is either small or refused.
SIDES = (0, 1, 2, 20, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_false_header(data: bytes, rng: random.Random) -> bytes:
    """The same pixels under a header that is well-formed, and claims another size, depth or format."""
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
    frame = data.find(b"\xff\xc0")
    if frame > 0:
        return data[: frame + 5] + struct.pack(">HH", height % 65536, width % 65536) + data[frame + 9 :]
    return data[:20] + rng.randbytes(10) + data[30:]


@fuzz_settings(2600)
@given(seeds)
def test_a_corrupted_image_is_decoded_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    data = rng.choice(IMAGES)
    if rng.random() < 0.4:
        data = with_false_header(data, rng)
    if rng.random() < 0.7:
        data = corrupt(data, rng, IMAGES)
    preparation = rng.choice((None, Preparation(16, 16), Preparation(64, 48, "bicubic"), Preparation(0, 5)))
    with only_gnp_errors("images"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an image that PIL only warns of is decoded
        pixels = decode(data, preparation)
        assert pixels.dtype == torch.uint8
        assert pixels.shape[0] == 3
        assert preparation is None or pixels.shape[1:] == (preparation.crop, preparation.crop)
