"""Stored parts as tensors: decoding and encoding the tar of a part."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data import codec, shards
from pipeline.data.sample import RejectedSample, Sample
from pipeline.errors import SampleError, ShardError


@dataclass(frozen=True)
class Images:
    """The decoded images of one part, in tar order.

    Attributes:
        keys: N keys.
        labels: (N,) int64, true classes.
        pixels: (N, 3, H, W) uint8.
        target_classes: (N,) int64, −1 where there is none. For originals, the class that the shard names for targeted
            attacks; for adversarial images, the class that the attack was to reach.
    """

    keys: tuple[str, ...]
    labels: Tensor
    pixels: Tensor
    target_classes: Tensor


def stack(samples: Sequence[Sample], pixels: Sequence[Tensor]) -> Images:
    """Samples and their pixels, all of one size, as one part; also for no samples at all."""
    labels = [sample.label for sample in samples]
    target_classes = [-1 if sample.target_class is None else sample.target_class for sample in samples]
    return Images(
        keys=tuple(sample.key for sample in samples),
        labels=torch.tensor(labels, dtype=torch.int64),
        pixels=torch.stack(list(pixels)) if pixels else torch.empty((0, 3, 0, 0), dtype=torch.uint8),
        target_classes=torch.tensor(target_classes, dtype=torch.int64),
    )


def select(images: Images, indices: Sequence[int]) -> Images:
    """Images of a part by index, in any order and with repeats."""
    rows = torch.tensor(indices, dtype=torch.int64)
    keys = tuple(images.keys[index] for index in indices)
    return Images(keys, images.labels[rows], images.pixels[rows], images.target_classes[rows])


def require_target_classes(images: Images, attack: str) -> None:
    """Requires that the shard names a target class for every image, as an attack of that name wants it.

    Raises:
        ShardError: An image has none.
    """
    lacking = images.target_classes < 0
    if lacking.any():
        key = images.keys[int(lacking.int().argmax())]
        raise ShardError(
            f"sample {key!r} has no target class, which {attack} wants; pack the shard again, under another name, with "
            f"a file {key}.target"
        )


def encode_tar(
    images: Images, pixels: Tensor, extra: Sequence[Mapping[str, bytes]] | None = None, *, threads: int = 1
) -> bytes:
    """The tar of a part: per sample `png`, `cls`, `target` where there is a target class, and extra files.

    Args:
        images: Keys, labels and target classes.
        pixels: (N, 3, H, W) uint8, the images to store.
        extra: More files per sample, by extension.
        threads: Number of images that are encoded in parallel.
    """
    with ThreadPoolExecutor(threads) as pool:
        encoded = list(pool.map(codec.encode, pixels))
    rows = zip(images.keys, images.labels.tolist(), images.target_classes.tolist(), encoded, strict=True)
    return shards.write_tar(
        {
            "__key__": key,
            "png": image,
            "cls": str(label).encode(),
            **({} if target_class < 0 else {"target": str(target_class).encode()}),
            **(extra[index] if extra else {}),
        }
        for index, (key, label, target_class, image) in enumerate(rows)
    )


def decode_tar(tar: bytes, *, name: str) -> Images:
    """The images of a stored part, original or adversarial.

    Args:
        tar: The stored object, whole.
        name: Name of the object in errors.

    Raises:
        ShardError: The tar is not one that a generator wrote.
    """
    samples = list(shards.read_samples(tar, name=name, classes=2**31))
    rejected = next((sample for sample in samples if isinstance(sample, RejectedSample)), None)
    if rejected is not None:
        raise ShardError(f"{name}: sample {rejected.key}: {rejected.reason}")
    usable = [sample for sample in samples if isinstance(sample, Sample)]
    try:
        pixels = [codec.decode(sample.image) for sample in usable]
    except SampleError as error:
        raise ShardError(f"{name}: {error}") from error
    if len({image.shape for image in pixels}) > 1:
        raise ShardError(f"{name}: its images differ in size")
    return stack(usable, pixels)
