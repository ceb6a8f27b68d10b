"""Stored parts as tensors: what attacks, scores, audits and pictures work on."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data import codec, shards
from pipeline.data.sample import Rejected, Sample
from pipeline.errors import SampleError, ShardError


@dataclass(frozen=True)
class Images:
    """The decoded images of one part, in tar order.

    Attributes:
        keys: N keys.
        labels: (N,) int64, true classes.
        pixels: (N, 3, H, W) uint8.
        target_classes: (N,) int64: of originals, the class that the shard would have a targeted attack reach; of
            adversarial images, the one that the attack wanted; −1 where there is none.
    """

    keys: tuple[str, ...]
    labels: Tensor
    pixels: Tensor
    target_classes: Tensor


def stack(samples: Sequence[Sample], pixels: Sequence[Tensor]) -> Images:
    """Samples and their pixels, of one size, as one part; of none at all as well."""
    labels = [sample.label for sample in samples]
    wanted = [-1 if sample.target_class is None else sample.target_class for sample in samples]
    return Images(
        keys=tuple(sample.key for sample in samples),
        labels=torch.tensor(labels, dtype=torch.int64),
        pixels=torch.stack(list(pixels)) if pixels else torch.empty((0, 3, 0, 0), dtype=torch.uint8),
        target_classes=torch.tensor(wanted, dtype=torch.int64),
    )


def taken(images: Images, indices: Sequence[int]) -> Images:
    """Some of a part's images, in any order, any of them as often as it is named."""
    chosen = torch.tensor(indices, dtype=torch.int64)
    keys = tuple(images.keys[index] for index in indices)
    return Images(keys, images.labels[chosen], images.pixels[chosen], images.target_classes[chosen])


def files(
    images: Images, pixels: Tensor, extra: Sequence[Mapping[str, bytes]] | None = None, *, threads: int = 1
) -> bytes:
    """The tar of a part, which `read` reads: `png`, `cls`, where there is a wanted class `target`, and what is extra.

    Args:
        images: Keys, labels and wanted classes.
        pixels: (N, 3, H, W) uint8, what is stored.
        extra: More files of each sample, by extension.
        threads: How many images are encoded at a time.
    """
    with ThreadPoolExecutor(threads) as pool:
        encoded = list(pool.map(codec.encode, pixels))
    rows = zip(images.keys, images.labels.tolist(), images.target_classes.tolist(), encoded, strict=True)
    return shards.write(
        {
            "__key__": key,
            "png": image,
            "cls": str(label).encode(),
            **({} if wanted < 0 else {"target": str(wanted).encode()}),
            **(extra[index] if extra else {}),
        }
        for index, (key, label, wanted, image) in enumerate(rows)
    )


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
    return stack(usable, pixels)
