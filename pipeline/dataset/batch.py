"""Decoding stored images into one training batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from pipeline.data import codec
from pipeline.data.sample import RejectedSample, Sample
from pipeline.data.shards import Shard
from pipeline.dataset.part_reader import StoredImage
from pipeline.errors import IntegrityError, RecipeError, SampleError, ShardError

# `Examples` describes its entries.
Batch = dict[str, Any]


class LoadedBatch(Batch):
    """A batch that a `DataLoader` leaves as it is, also without `batch_size=None`: batches are not collated again."""


def _collate(batches: Sequence[LoadedBatch], **_: object) -> LoadedBatch:
    """The batch, where a loader's batch size is 1, its default.

    Raises:
        RecipeError: The loader asks for batches of batches.
    """
    if len(batches) != 1:
        raise RecipeError(
            f"batch_size = {len(batches)} of the DataLoader: examples are batches already; pass batch_size=None to it, "
            "and batch_size to Dataset.examples"
        )
    return batches[0]


default_collate_fn_map[LoadedBatch] = _collate


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
        "images": _stack(stored, samples, pixels),
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
        batch["clean"] = _stack(stored, samples, clean)
    if success:
        batch["success"] = torch.tensor([_succeeded(image) for image in stored])
    return LoadedBatch(batch)


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


def _stack(stored: Sequence[StoredImage], samples: Sequence[Sample], pixels: Sequence[np.ndarray]) -> Tensor:
    """(B, 3, H, W) uint8, channels last in memory: the layout of decoders and of fast convolutions, without a copy."""
    height, width, _ = pixels[0].shape
    for image, sample, array in zip(stored, samples, pixels, strict=True):
        if array.shape != pixels[0].shape:
            raise RecipeError(
                f"{image.tar.name}: {sample.key}: {array.shape[1]} x {array.shape[0]} pixels, {stored[0].tar.name}: "
                f"{samples[0].key}: {width} x {height}; choose datasets of one size"
            )
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
