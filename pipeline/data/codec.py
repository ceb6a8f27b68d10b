"""Decoding and encoding: bytes ↔ uint8 ↔ float in [0, 1], and rounding that keeps stored images inside the ball."""

import hashlib
import io
import math
import re
import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import SampleError

# The accepted formats: PIL reads many more, some of which start other programs (EPS) or are rarely hardened.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
# ImageNet's largest photograph has 40 million pixels; a larger file is a decompression bomb.
_MAX_PIXELS = 100_000_000
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")


@dataclass(frozen=True)
class Preparation:
    """Preparation of a shard's image into the original that is attacked: resize, then centre crop.

    To the last pixel what torchvision's Resize and CenterCrop do with the same settings; importing it takes a second.

    Attributes:
        resize: Shortest side in pixels after resizing; 0 keeps the native size.
        crop: Side of the square centre crop in pixels.
        interpolation: PIL's filter.
        aspect: `keep` resizes both sides by one factor; `squash` resizes to `resize` x `resize` whatever the shape, as
            TransferAttack does.
    """

    resize: int = 256
    crop: int = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    aspect: Literal["keep", "squash"] = "keep"

    def __post_init__(self) -> None:
        if self.crop < 1:
            raise ValueError(f"crop = {self.crop}: must be at least 1 pixel")
        if self.resize != 0 and self.resize < self.crop:
            raise ValueError(f"resize = {self.resize}: must be at least crop = {self.crop}, or 0 for the native size")
        if self.aspect == "squash" and not self.resize:
            raise ValueError('aspect = "squash": resize must be the side to squash to, not 0')

    def __call__(self, image: Image.Image) -> Image.Image:
        """The prepared image.

        Raises:
            SampleError: The image is smaller than the crop.
        """
        if self.resize:
            squashed = (self.resize, self.resize)
            size = squashed if self.aspect == "squash" else _shortest_side_to(self.resize, image.size)
            _require_size(*size)
            if size != image.size:
                image = image.resize(size, _FILTERS[self.interpolation])
        if min(image.size) < self.crop:
            raise SampleError(f"{image.width}x{image.height} pixels: smaller than the crop of {self.crop}")
        # Of an odd number of pixels too many, half is rounded to the even number, as torchvision does.
        left, top = (round((side - self.crop) / 2) for side in image.size)
        return image.crop((left, top, left + self.crop, top + self.crop))


def _shortest_side_to(length: int, size: tuple[int, int]) -> tuple[int, int]:
    """The size of an image whose shortest side is resized to a length; the other side is rounded down."""
    shortest = min(size)
    width, height = (length if side == shortest else length * side // shortest for side in size)
    return width, height


def decode(data: bytes, preparation: Preparation | None = None) -> Tensor:
    """An encoded image's pixels: (3, H, W) uint8, RGB.

    Raises:
        SampleError: The bytes are not an image, or cannot be decoded in full.
    """
    return torch.from_numpy(decode_hwc(data, preparation)).permute(2, 0, 1).contiguous()


def decode_hwc(data: bytes, preparation: Preparation | None = None) -> np.ndarray:
    """An encoded image's pixels in the layout of decoders: (H, W, 3) uint8, RGB.

    Transparent pixels are shown on white; values of 16 bits are scaled to 8; the orientation that EXIF states is
    ignored, as torchvision does; of an animation, the first frame is taken.

    Raises:
        SampleError: The bytes are not an image, cannot be decoded in full, or have values without a range.
    """
    try:
        with Image.open(io.BytesIO(_without_png_metadata(data)), formats=_FORMATS) as image:
            _require_size(image.width, image.height)
            rgb = _to_rgb(image)
    except SampleError:
        raise
    except Exception as error:  # on untrusted bytes, decoders raise errors of any type
        message = re.sub(r" <_io.*?>", "", str(error))  # without memory addresses, which differ from run to run
        raise SampleError(f"undecodable image: {type(error).__name__}: {message}"[:200]) from error
    return np.array(rgb if preparation is None else preparation(rgb))


def _to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB; PIL alone would show the hidden colour of transparent pixels, and clip 16 bits."""
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert("RGB")
    if image.mode == "F":
        raise SampleError("its pixels are floating-point numbers, whose range no field states")
    if image.mode.startswith("I"):  # PNG's and PPM's grey of 16 bits, which PIL gives as 0..65535
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _without_png_metadata(data: bytes) -> bytes:
    """A PNG without its texts and profiles, whose size PIL limits; any other bytes as they are."""
    if not data.startswith(_PNG_SIGNATURE):
        return data
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = position + 12 + length
        if kind not in _PNG_METADATA:
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])


def _require_size(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise SampleError(f"{width}x{height} pixels: more than {_MAX_PIXELS:,}")


def encode(pixels: Tensor) -> bytes:
    """A PNG of (3, H, W) uint8 RGB pixels; the same pixels give the same bytes.

    Each pixel is stored as the difference to its left neighbour (filter 1), without a search for repeats, of which
    adversarial noise has none. PIL tries five filters per row: three times as slow, for images that are smaller by 1.5%
    with noise and by 8% without, on the demo's photographs.

    References:
        "Portable Network Graphics Specification", third edition, W3C (2025), sections 5 and 9.
    """
    _, height, width = pixels.shape
    array = pixels.permute(1, 2, 0).contiguous().numpy().reshape(height, 3 * width)
    rows = np.ones((height, 1 + 3 * width), np.uint8)  # each row begins with the number of its filter
    rows[:, 1:4] = array[:, :3]
    np.subtract(array[:, 3:], array[:, :-3], out=rows[:, 4:])  # modulo 256
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, deflate, filters, not interlaced
    data = deflate.compress(rows.tobytes()) + deflate.flush()
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def to_float(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1], same shape."""
    return pixels.to(torch.float32) / 255


def levels(epsilon: Fraction) -> int:
    """The L∞ budget in steps of stored pixels: the largest n with n/255 ≤ epsilon."""
    return math.floor(epsilon * 255)


def quantise(adversarial: Tensor, original: Tensor, epsilon: Fraction, norm: Literal["linf", "l2"] = "linf") -> Tensor:
    """Rounds images to uint8 such that the stored values are exactly within epsilon of the original.

    Rounding to nearest can leave the ball. In L∞, where 255·epsilon is not a whole number, the rounded value is clipped
    to the nearest admissible one. In L2, values move back towards the original by one level each, first those that
    rounding moved away the farthest, and no more of them than necessary; the norm is computed in integers.

    Args:
        adversarial: (B, 3, H, W) float32 in [0, 1].
        original: (B, 3, H, W) uint8.
        epsilon: The budget on [0, 1].
        norm: Norm of the budget.

    Returns:
        (B, 3, H, W) uint8.
    """
    base = original.to(torch.int16)
    rounded = torch.round(adversarial * 255).to(torch.int16)
    if norm == "linf":
        budget = levels(epsilon)
        nearest = torch.minimum(torch.maximum(rounded, base - budget), base + budget)
        return nearest.clamp(0, 255).to(torch.uint8)
    changes = _shorten(rounded - base, adversarial.double() * 255 - base, squared_levels(epsilon))
    return (base + changes).to(torch.uint8)


def squared_levels(epsilon: Fraction) -> int:
    """The L2 budget in stored values: the largest sum of squared changes, ⌊(255·epsilon)²⌋."""
    return math.floor((epsilon * 255) ** 2)


def _shorten(rounded: Tensor, exact: Tensor, budget: int) -> Tensor:
    """Shortens rounded changes (B, 3, H, W) int16 until the sum of each image's squares is within a budget."""
    flat, exact = rounded.flatten(1).to(torch.int64), exact.flatten(1)
    places = torch.arange(flat.shape[1], device=flat.device)
    while ((excess := (flat**2).sum(dim=1, keepdim=True) - budget) > 0).any():
        overshoot = torch.where(flat == 0, -torch.inf, flat.abs() - exact * flat.sign())
        order = overshoot.argsort(dim=1, descending=True, stable=True)
        gains = torch.where(flat == 0, 0, 2 * flat.abs() - 1).gather(1, order).cumsum(dim=1)
        goes_back = (places <= (gains < excess).sum(dim=1, keepdim=True)) & (excess > 0)
        flat -= flat.sign() * torch.zeros_like(goes_back).scatter(1, order, goes_back)
    return flat.view_as(rounded).to(torch.int16)


def pixels_sha256(pixels: Tensor) -> str:
    """Hex sha256 of uint8 pixels, independent of their encoding."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
