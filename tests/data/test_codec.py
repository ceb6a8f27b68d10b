import io
from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from pipeline.data import codec
from pipeline.data.codec import Preparation
from pipeline.errors import SampleError
from tests.samples import jpeg


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (17, 23), (224, 224)])
@pytest.mark.parametrize("kind", ["noise", "flat", "slope"])
def test_png_is_lossless_and_deterministic(height: int, width: int, kind: str) -> None:
    torch.manual_seed(0)
    pixels = {
        "noise": torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
        "flat": torch.full((3, height, width), 255, dtype=torch.uint8),
        "slope": (7 * torch.arange(3 * height * width)).view(3, height, width).to(torch.uint8),
    }[kind]
    encoded = codec.encode(pixels)
    assert torch.equal(codec.decode(encoded), pixels)
    Image.open(io.BytesIO(encoded)).verify()  # its checksums
    assert encoded == codec.encode(pixels.clone())


def test_png_of_noise_is_at_most_a_tenth_larger_than_pils() -> None:
    torch.manual_seed(0)
    slope = torch.arange(224).view(1, 1, -1).expand(3, 224, 224)
    pixels = (slope + 16 * (2 * torch.randint(0, 2, (3, 224, 224)) - 1)).clamp(0, 255).to(torch.uint8)
    pil_png = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(pil_png, "PNG")
    assert len(codec.encode(pixels)) < 1.1 * len(pil_png.getvalue())


@settings(max_examples=200, deadline=None)
@given(st.fractions(Fraction(1, 255), 1), st.integers(0, 2**31))
def test_a_quantised_image_is_inside_the_ball(epsilon: Fraction, seed: int) -> None:
    torch.manual_seed(seed)
    original = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    wild = codec.to_float(original) + (torch.rand(original.shape) * 2 - 1) * 2 * float(epsilon)
    stored = codec.quantise(wild, original, epsilon)
    assert Fraction(int((stored.int() - original.int()).abs().max()), 255) <= epsilon


def test_quantise_rounds_to_nearest() -> None:
    original = torch.full((1, 3, 1, 1), 100, dtype=torch.uint8)
    found = codec.quantise(torch.full((1, 3, 1, 1), 103.6 / 255), original, Fraction(16, 255))
    assert set(found.flatten().tolist()) == {104}


def test_rounding_in_an_l2_ball_goes_back_only_as_far_as_it_must_whatever_the_batch() -> None:
    """Against the rule itself, image by image: what overshot the most goes back by one level, one at a time."""
    torch.manual_seed(0)
    original = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    epsilon = Fraction(3, 10)
    directions = torch.randn(6, 3, 8, 8)
    lengths = torch.tensor([0.0, 0.1, 0.3, 0.301, 0.31, 0.6]).view(-1, 1, 1, 1)  # the last needs several rounds
    moved = directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * lengths
    adversarial = (codec.to_float(original) + moved).clamp(0, 1)
    found = codec.quantise(adversarial, original, epsilon, "l2")
    for index in range(6):
        exact = (adversarial[index].double() * 255 - original[index]).flatten().tolist()
        change = [round(value) for value in (adversarial[index] * 255 - original[index]).double().flatten().tolist()]
        while sum(value**2 for value in change) > (255 * epsilon) ** 2:
            farthest = max(
                (place for place, value in enumerate(change) if value),
                key=lambda place: abs(change[place]) - exact[place] * (1 if change[place] > 0 else -1),
            )
            change[farthest] -= 1 if change[farthest] > 0 else -1
        stored = (found[index].int() - original[index].int()).flatten().tolist()
        assert sum(value**2 for value in stored) <= (255 * epsilon) ** 2
        if lengths[index] < 0.6:
            assert stored == change


def test_levels_are_computed_exactly() -> None:
    assert [codec.levels(Fraction(n, 255)) for n in range(256)] == list(range(256))
    assert codec.levels(Fraction("0.03")) == 7


def test_every_uint8_is_restored_from_float() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(codec.quantise(codec.to_float(pixels), pixels, Fraction(1, 255)), pixels)


def test_preparation_resizes_the_shortest_side_and_crops_the_centre() -> None:
    wide = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3)))
    prepared = np.asarray(Preparation(resize=50, crop=40)(wide))
    assert prepared.shape == (40, 40, 3)
    assert abs(float(prepared.mean()) - 99.5) < 1
    assert np.array_equal(np.asarray(Preparation(resize=0, crop=100)(wide)), np.asarray(wide.crop((50, 0, 150, 100))))


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(9, 80), st.integers(0, 8), st.data())
def test_preparation_is_torchvisions(width: int, height: int, resize: int, less: int, data: st.DataObject) -> None:
    interpolation: Literal["bilinear", "bicubic"] = data.draw(st.sampled_from(["bilinear", "bicubic"]))
    aspect: Literal["keep", "squash"] = data.draw(st.sampled_from(["keep", "squash"]))
    image = Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8))
    size = [resize, resize] if aspect == "squash" else resize
    resized = vision.resize(image, size, InterpolationMode(interpolation))
    expected = vision.center_crop(resized, resize - less)
    prepared = Preparation(resize=resize, crop=resize - less, interpolation=interpolation, aspect=aspect)(image)
    assert np.array_equal(np.asarray(prepared), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_any_colour_mode_is_decoded_as_rgb(mode: str) -> None:
    image = Image.fromarray(np.full((50, 50), 77, np.uint16)) if mode == "I;16" else Image.new(mode, (50, 50), 77)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert codec.decode(buffer.getvalue()).shape == (3, 50, 50)


def decompression_bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (12000, 10000)).save(buffer, "PNG")  # below the limit of PIL's error, above ours
    return buffer.getvalue()


def narrow_strip() -> bytes:
    """A PNG that is small until its short side is resized to 256 pixels: then 10,000 times as large."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 30000)).save(buffer, "PNG")
    return buffer.getvalue()


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (50, 50)).save(buffer, "GIF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        jpeg(0)[:200],
        jpeg(0)[:-200],
        codec.encode(torch.zeros((3, 9, 9), dtype=torch.uint8))[:-30],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        gif(),
        decompression_bomb(),
    ],
    ids=["empty", "junk", "headless", "truncated jpeg", "truncated png", "postscript", "gif", "decompression_bomb"],
)
def test_an_undecodable_image_is_a_sample_error(data: bytes) -> None:
    with pytest.raises(SampleError):
        codec.decode(data)


def test_an_image_that_resizing_makes_huge_is_a_sample_error() -> None:
    with pytest.raises(SampleError, match="256x7680000 pixels: more than"):
        codec.decode(narrow_strip(), Preparation())


def test_a_reason_has_no_memory_address() -> None:
    with pytest.raises(SampleError) as refused:
        codec.decode(b"junk")
    assert "0x" not in str(refused.value)


def test_an_image_smaller_than_the_crop_is_a_sample_error() -> None:
    with pytest.raises(SampleError, match="smaller than the crop"):
        codec.decode(jpeg(0, side=40), Preparation(resize=0, crop=41))


@pytest.mark.parametrize("wrong", [{"crop": 0}, {"resize": 100, "crop": 101}])
def test_an_invalid_preparation_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="crop"):
        Preparation(**wrong)  # type: ignore[arg-type]
