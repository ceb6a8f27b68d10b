"""Decoding stored images into one training batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data import codec
from pipeline.data.sample import RejectedSample, Sample
from pipeline.data.shards import Shard
from pipeline.dataset.part_reader import StoredImage
from pipeline.errors import IntegrityError, RecipeError, SampleError, ShardError

# `Examples` describes its entries.
Batch = dict[str, Any]


def decode_batch(stored: Sequence[StoredImage], *, pairs: bool, success: bool) -> Batch:
    """Decodes images into tensors.

    Args:
        stored: B images of one size.
        pairs: Decode their originals too, as `clean`.
        success: Add `success`, (B,) bool.

    Raises:
        ShardError: An image cannot be decoded.
        IntegrityError: The originals are those of other images.
        RecipeError: The images differ in size.
    """
    samples, pixels = zip(*(_decode(image.tar, image.index) for image in stored), strict=True)
    units = [image.part.marker.unit for image in stored]
    batch: Batch = {
        "images": _stack(stored, pixels),
        "labels": torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        "keys": [sample.key for sample in samples],
        "datasets": [unit.dataset for unit in units],
        "sources": [unit.source for unit in units],
        "attacks": [unit.attack for unit in units],
        "adversarial": torch.tensor([bool(unit.attack) for unit in units]),
    }
    if pairs:
        originals, clean = zip(
            *(_decode(image.original, image.index) for image in stored if image.original), strict=True
        )
        if [original.key for original in originals] != batch["keys"]:
            raise IntegrityError(f"{stored[0].tar.name}: its images are not those of its originals; run verify")
        batch["clean"] = _stack(stored, clean)
    if success:
        batch["success"] = torch.tensor([_succeeded(image) for image in stored])
    return batch


def _succeeded(image: StoredImage) -> bool:
    return image.part.success is not None and bool(image.part.success[image.index])


def _decode(tar: Shard, index: int) -> tuple[Sample, np.ndarray]:
    """A sample and its pixels, (H, W, 3) uint8."""
    (sample,) = tar.samples([index], classes=2**31)
    if isinstance(sample, RejectedSample):
        raise ShardError(f"{tar.name}: sample {sample.key}: {sample.reason}")
    try:
        return sample, codec.decode_hwc(sample.image)
    except SampleError as error:
        raise ShardError(f"{tar.name}: sample {sample.key}: {error}") from error


def _stack(stored: Sequence[StoredImage], pixels: Sequence[np.ndarray]) -> Tensor:
    """(B, 3, H, W) uint8, channels last in memory: the layout of decoders and of fast convolutions, without a copy."""
    height, width, _ = pixels[0].shape
    for image, array in zip(stored, pixels, strict=True):
        if array.shape != pixels[0].shape:
            raise RecipeError(
                f"{image.tar.name}: {array.shape[1]} x {array.shape[0]} pixels, {stored[0].tar.name}: "
                f"{width} x {height}; choose datasets of one size"
            )
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
