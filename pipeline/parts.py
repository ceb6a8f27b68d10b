"""Stored parts as tensors: what attacks, scores, audits and pictures work on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import codec, shards
from pipeline.errors import SampleError, ShardError
from pipeline.sample import Rejected, Sample


@dataclass(frozen=True)
class Images:
    """The decoded images of one part, in tar order.

    Attributes:
        keys: N keys.
        labels: (N,) int64, true classes.
        pixels: (N, 3, H, W) uint8.
    """

    keys: tuple[str, ...]
    labels: Tensor
    pixels: Tensor


def stack(keys: list[str], labels: list[int], pixels: list[Tensor]) -> Images:
    """Images of one size, or none at all, as one part."""
    stacked = torch.stack(pixels) if pixels else torch.empty((0, 3, 0, 0), dtype=torch.uint8)
    return Images(tuple(keys), torch.tensor(labels, dtype=torch.int64), stacked)


def read(tar: bytes, *, name: str) -> Images:
    """The images of a stored part, original or adversarial.

    Args:
        tar: The stored object, whole.
        name: What to call it in errors.

    Raises:
        ShardError: The tar is not one that a generator wrote.
    """
    samples = list(shards.read(tar, name=name, classes=2**31))
    rejected = next((sample for sample in samples if isinstance(sample, Rejected)), None)
    if rejected is not None:
        raise ShardError(f"{name}: sample {rejected.key}: {rejected.reason}")
    usable = [sample for sample in samples if isinstance(sample, Sample)]
    try:
        pixels = [codec.decode(sample.image) for sample in usable]
    except SampleError as error:
        raise ShardError(f"{name}: {error}") from error
    if len({image.shape for image in pixels}) > 1:
        raise ShardError(f"{name}: its images differ in size")
    return stack([sample.key for sample in usable], [sample.label for sample in usable], pixels)
