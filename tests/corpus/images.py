"""Image files whose pixels are easily read wrongly."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from pipeline.data import codec
from pipeline.data.codec import Preparation
from tests.corpus.cases import Refusal, case
from tests.samples import jpeg

SIDE = 8


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), colour)  # type: ignore[arg-type]


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((SIDE, SIDE), value, np.uint16))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind: bytes, data: bytes) -> bytes:
    """A grey PNG with one more chunk after its header."""
    png = saved(plain("RGB", (9, 9, 9)))
    return png[:33] + chunk(kind, data) + png[33:]


def palette(transparent: int | None) -> bytes:
    image = plain("P", 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return saved(image, transparency=transparent)


def text_png() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "x" * (3 << 20), zip=True)
    return saved(plain("RGB", (9, 9, 9)), pnginfo=info)


def oriented() -> bytes:
    """The upper half white, with a note to show it upside down."""
    image = plain("RGB", "black")
    image.paste("white", (0, 0, SIDE, SIDE // 2))
    exif = Image.Exif()
    exif[0x0112] = 3
    return saved(image, "JPEG", exif=exif, quality=100)


def animated() -> bytes:
    return saved(plain("RGB", (9, 9, 9)), "WEBP", save_all=True, append_images=[plain("RGB", "white")], lossless=True)


def ppm(kind: str, most: int, values: bytes) -> bytes:
    return f"{kind}\n{SIDE} {SIDE}\n{most}\n".encode() + values


# Image files, and the pixel at the upper left that is read.
PIXELS: Mapping[str, tuple[Callable[[], bytes], object]] = {
    "grey of 16 bits, half bright": (lambda: saved(grey16(32896)), [128, 128, 128]),
    "grey of 16 bits, dark": (lambda: saved(grey16(257)), [1, 1, 1]),
    "grey of 16 bits, white": (lambda: saved(grey16(65535)), [255, 255, 255]),
    "PGM of 16 bits": (lambda: ppm("P5", 65535, b"\x80\x80" * SIDE**2), [128, 128, 128]),
    "PGM of 10 bits": (lambda: ppm("P5", 1023, b"\x02\x00" * SIDE**2), [128, 128, 128]),
    "PPM of 16 bits": (lambda: ppm("P6", 65535, b"\x80\x80" * 3 * SIDE**2), [128, 128, 128]),
    "floating-point PFM": (lambda: ppm("Pf", -1, struct.pack("<f", 0.5) * SIDE**2), Refusal("floating-point")),
    "black and white": (lambda: saved(plain("1", 1)), [255, 255, 255]),
    "grey": (lambda: saved(plain("L", 7)), [7, 7, 7]),
    "grey of 2 bits": (lambda: saved(plain("L", 255).quantize(3), bits=2), [255, 255, 255]),
    "a palette": (lambda: palette(None), [10, 20, 30]),
    "a palette with transparency": (lambda: palette(1), [255, 255, 255]),
    "transparent red": (lambda: saved(plain("RGBA", (255, 0, 0, 0))), [255, 255, 255]),
    "half transparent black": (lambda: saved(plain("RGBA", (0, 0, 0, 128))), [127, 127, 127]),
    "opaque with alpha": (lambda: saved(plain("RGBA", (9, 8, 7, 255))), [9, 8, 7]),
    "grey with alpha": (lambda: saved(plain("LA", (0, 0))), [255, 255, 255]),
    "one colour transparent": (lambda: saved(plain("RGB", (1, 2, 3)), transparency=(1, 2, 3)), [255, 255, 255]),
    "one grey transparent": (lambda: saved(plain("L", 7), transparency=7), [255, 255, 255]),
    "transparent WebP": (
        lambda: saved(plain("RGBA", (255, 0, 0, 0)), "WEBP", lossless=True, exact=True),
        [255, 255, 255],
    ),
    "CMYK": (lambda: saved(plain("CMYK", (0, 0, 0, 0)), "JPEG", quality=100), [255, 255, 255]),
    "grey JPEG": (lambda: saved(plain("L", 128), "JPEG", quality=100), [128, 128, 128]),
    "an orientation in EXIF": (oriented, [255, 255, 255]),
    "an animation": (animated, [9, 9, 9]),
    "a text of 3 MB that is compressed": (text_png, [9, 9, 9]),
    "a text of 70 MB that is compressed": (
        lambda: with_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(70 << 20))),
        [9, 9, 9],
    ),
    "an ICC profile of 3 MB": (lambda: with_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(3 << 20))), [9, 9, 9]),
    "a damaged text": (lambda: with_chunk(b"zTXt", b"k\0\0broken"), [9, 9, 9]),
    "a chunk that claims more than the file": (
        lambda: with_chunk(b"tEXt", b"")[:33] + b"\xff" * 8,
        Refusal("undecodable"),
    ),
    "a GIF": (lambda: saved(plain("RGB", (9, 9, 9)), "GIF"), Refusal("undecodable")),
    "a TIFF of 16 bits": (lambda: saved(grey16(65535), "TIFF"), Refusal("undecodable")),
    "a JPEG cut off": (lambda: jpeg(0)[:-200], Refusal("truncated")),
    "a PNG cut off": (lambda: saved(plain("RGB", (9, 9, 9)))[:50], Refusal("undecodable")),
    "nothing": (lambda: b"", Refusal("undecodable")),
    "a page of HTML": (lambda: b"<html>404</html>", Refusal("undecodable")),
    "a bomb": (lambda: saved(Image.new("1", (20000, 20000))), Refusal("400000000 pixels")),
}
for name, (make, expected) in PIXELS.items():

    @case("images", name, expected)
    def _(folder: Path, make: Callable[[], bytes] = make) -> object:
        del folder
        return codec.decode_hwc(make())[0, 0].tolist()


@case("images", "originals that were squashed to a square", True)
def _(folder: Path) -> object:
    del folder
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    squashed = np.asarray(photograph.resize((32, 32), Image.Resampling.BICUBIC))  # what TransferAttack's loader does
    prepared = codec.decode_hwc(saved(photograph), Preparation(32, 32, "bicubic", "squash"))
    return bool((prepared == squashed).all())


@case("images", "a strip that is squashed", (32, 32, 3))
def _(folder: Path) -> object:
    del folder
    return codec.decode_hwc(saved(Image.new("RGB", (1, 5000))), Preparation(32, 32, aspect="squash")).shape


@case("images", "a strip that would be resized to a bomb", Refusal("more than 100,000,000"))
def _(folder: Path) -> object:
    del folder
    return codec.decode_hwc(saved(Image.new("RGB", (1, 5000))), Preparation(256, 224)).shape


@case("images", "squashed to no size", Refusal("squash.*must be the side"))
def _(folder: Path) -> object:
    del folder
    return Preparation(0, 224, aspect="squash")
