"""Images and parts of a plan's shards: counted where they are committed, extrapolated by size in the other shards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.data import shards
from pipeline.data.sample import Part
from pipeline.ledger import CommittedParts, Ledger, Marker, Unit
from pipeline.plan.resolve import Plan

# Markers or shards that are read as samples of many: parts differ little from each other.
SAMPLES = 8
T = TypeVar("T")


@dataclass(frozen=True)
class ImageCounts:
    """Images and parts of a plan's shards.

    Attributes:
        known: Number of shards whose parts have been counted.
        parts: Shard → number of parts.
        images: Shard → number of images that the plan takes.
    """

    known: int
    parts: Mapping[str, int]
    images: Mapping[str, int]


def count_images(plan: Plan, ledger: Ledger, committed: CommittedParts) -> ImageCounts:
    """Counts the images and parts of a plan's shards.

    Where nothing of the plan's data is committed, its first shard is read to count its images.

    Raises:
        StorageError: A marker or the shard cannot be read.
        ShardError: The first shard is damaged.
    """
    names = [selection.shard.name for selection in plan.selections]
    known = {name: count for name in names if (count := committed.part_count(name)) is not None}
    density = _measure_density(plan, ledger, committed)
    part_size = plan.job.data.part_size
    parts: dict[str, int] = {}
    images: dict[str, int] = {}
    for selection in plan.selections:
        name = selection.shard.name
        samples: float = selection.shard.size_bytes * density.images_per_byte
        if name in density.counted:
            samples = density.counted[name]
        if selection.images is not None:
            samples = min(samples, selection.images)
        parts[name] = known.get(name) or max(1, math.ceil(round(samples) / part_size))
        if name in known:  # all of its parts except the last are full
            samples = min(max(samples, (parts[name] - 1) * part_size + 1), parts[name] * part_size)
        images[name] = round(samples * density.share)
    return ImageCounts(len(known), parts, images)


@dataclass(frozen=True)
class _Density:
    """Images of shards by their size.

    Attributes:
        images_per_byte: Images per byte of a shard.
        share: The share of the images that the plan takes.
        counted: Shard → number of images, for the shards that were counted.
    """

    images_per_byte: float
    share: float
    counted: Mapping[str, int]


def _measure_density(plan: Plan, ledger: Ledger, committed: CommittedParts) -> _Density:
    """Measures some shards whose originals are all committed, or else the plan's first shard."""
    original = Unit(plan.dataset, Part("", 0, 1))
    committed_parts = committed.scopes[original.scope]
    whole = [name for name, (count, bits) in committed_parts.items() if bits == (1 << count) - 1]
    counted: dict[str, int] = {}
    size = read = taken = 0
    for name in spread(whole):
        count = committed_parts[name][0]
        first, last = (ledger.read_marker(replace(original, part=Part(name, index, count))) for index in (0, count - 1))
        size += int(first.fact("shard")["size_bytes"])
        counted[name] = _samples_in_part(first) * (count - 1) + _samples_in_part(last)
        read += int(first.fact("n_in")) + int(last.fact("n_in"))
        taken += int(first.fact("n_ok")) + int(last.fact("n_ok"))
    data = plan.job.data
    if size and data.limit is None:
        return _Density(sum(counted.values()) / size, data.fraction * (taken / read if read else 1), counted)
    if not plan.selections:
        return _Density(0.0, 1.0, counted)
    file = plan.selections[0].shard
    with shards.download_shard(file) as shard:
        return _Density(len(shard) / max(file.size_bytes, 1), data.fraction, counted)


def spread(items: Sequence[T]) -> Sequence[T]:
    """At most `SAMPLES` of the items, far apart."""
    return items[:: max(1, len(items) // SAMPLES)][:SAMPLES]


def _samples_in_part(original: Marker) -> int:
    """The samples of an original part in its shard, taken or not."""
    return int(original.fact("n_in")) + int(original.fact("n_not_chosen"))
