"""What local shards tell before workers start: their numbers of parts, and whether any of their images can be used."""

import math
from collections import Counter
from collections.abc import Sequence

from pipeline.data import codec, parts, shards
from pipeline.data.sample import RejectedSample
from pipeline.data.shards import Shard
from pipeline.errors import GnpError, RecipeError, SampleError
from pipeline.plan.external import ExternalAttack, ExternalImages
from pipeline.plan.job import Job
from pipeline.plan.outline import ShardSelection

# Walking over the headers of a local shard of 10,000 samples takes 0.2 s; that of a remote one is its download.
_MOST_READ = 8


def count_parts(selections: Sequence[ShardSelection], job: Job) -> dict[str, int]:
    """Counts the parts of shards whose images are limited, and of local shards where these are few.

    Returns:
        Shard → number of parts.

    Raises:
        RecipeError: The shards are local and few, and an attack of any of them would fail, or make nothing.
    """
    few = len(selections) <= _MOST_READ
    images = {selection.shard.name: selection.images for selection in selections}
    faults: dict[str, str] = {}
    for selection in selections if few else ():
        name, url = selection.shard.name, selection.shard.url
        if "://" in url:
            continue
        try:
            with open(url, "rb") as file:
                if not shards.is_gzip(file):  # which workers unpack
                    shard = Shard(file, name=name)
                    shard.require_samples()
                    count = images[name] = min(len(shard), selection.images or len(shard))
                    _try_first_image(shard, count, job)
        except (OSError, GnpError) as error:
            faults[name] = str(error)
    if faults and len(faults) == len(selections):  # otherwise workers do the other shards, and list these
        rest = f" (the first fault of {len(faults)} shards, all of which have one)" if len(faults) > 1 else ""
        raise RecipeError(f"{next(iter(faults.values()))}{rest}")
    return {name: max(1, math.ceil(count / job.data.part_size)) for name, count in images.items() if count is not None}


def _try_first_image(shard: Shard, count: int, job: Job) -> None:
    """Tries what workers need of the first usable image among the first `count` samples of a shard.

    Raises:
        RecipeError: None can be used.
        ShardError: It has no target class where an attack wants one, or another program's images do not fit it.
    """
    data = job.data
    reasons = Counter[str]()
    for sample in shard.samples(range(count), classes=data.classes, label=data.label):
        if not data.includes(shard.name, sample.key):
            continue
        if isinstance(sample, RejectedSample):
            reasons[sample.reason] += 1
            continue
        try:
            images = parts.stack([sample], [codec.decode(sample.image, data.preparation)])
        except SampleError as error:
            reasons[str(error)] += 1
            continue
        for attack in job.attacks:
            if attack.target_class == "shard":
                parts.require_target_classes(images, attack.name)
            for source in job.sources:
                if isinstance(attack, ExternalAttack) and isinstance(source, ExternalImages):
                    source.read_pixels(images, attack)
        return
    if reasons:
        ((reason, most),) = reasons.most_common(1)
        raise RecipeError(f"shard {shard.name}: no image can be used: {most} of {reasons.total()}: {reason}")
