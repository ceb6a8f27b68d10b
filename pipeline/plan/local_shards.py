"""What local shards tell before workers start: their numbers of parts, and whether any of their images can be used."""

import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence

from pipeline.data import codec, parts, shards
from pipeline.data.parts import Images
from pipeline.data.sample import RejectedSample
from pipeline.data.shards import Shard
from pipeline.errors import GnpError, RecipeError, SampleError, ShardError
from pipeline.plan.external import ExternalAttack, ExternalImages
from pipeline.plan.job import Job
from pipeline.plan.outline import ShardSelection

# Walking over the headers of a local shard of 1,000 samples takes 20 ms; that of a remote one is its download.
_MOST_READ = 64
# What was not found by then, workers find: a file system may be slow, and images may be many.
_MOST_S = 5.0


def count_parts(selections: Sequence[ShardSelection], job: Job, *, is_new: bool = True) -> dict[str, int]:
    """Counts the parts of shards whose images are limited, and of local shards where these are few.

    Args:
        selections: The shards.
        job: What is to be made of them.
        is_new: Whether nothing was made of these images before; only then are shards refused.

    Returns:
        Shard → number of parts, as far as it is known.

    Raises:
        RecipeError: The shards are local and few, and there is no image of which any attack could be made.
    """
    until = time.monotonic() + _MOST_S
    images = {selection.shard.name: selection.images for selection in selections}
    faults: list[str] = []
    usable = False
    for selection in selections if len(selections) <= _MOST_READ else ():
        name, url = selection.shard.name, selection.shard.url
        if "://" in url or time.monotonic() > until:
            continue
        try:
            with open(url, "rb") as file:
                if not shards.is_gzip(file):  # which workers unpack
                    shard = Shard(file, name=name)
                    shard.require_samples()
                    count = images[name] = min(len(shard), selection.images or len(shard))
                    if is_new and not usable:
                        _require_usable_image(shard, count, job, until)
                        usable = True
        except (OSError, GnpError) as error:
            faults.append(str(error))
    if is_new and faults and len(faults) == len(selections):  # otherwise workers do the others, and list these
        rest = f" (the first fault of {len(faults)} shards, all of which have one)" if len(faults) > 1 else ""
        raise RecipeError(f"{faults[0]}{rest}")
    return {name: max(1, math.ceil(count / job.data.part_size)) for name, count in images.items() if count is not None}


def _require_usable_image(shard: Shard, count: int, job: Job, until: float) -> None:
    """Requires an image among the first `count` samples of a shard of which some attack can be made.

    Raises:
        RecipeError: There is none; the commonest reason is named.
    """
    data = job.data
    reasons = Counter[str]()
    for sample in shard.samples(range(count), classes=data.classes, label=data.label):
        if time.monotonic() > until:
            return
        if not data.includes(shard.name, sample.key):
            continue
        if isinstance(sample, RejectedSample):
            reasons[sample.reason] += 1
            continue
        try:
            _require_one_attack(parts.stack([sample], [codec.decode(sample.image, data.preparation)]), job)
        except (SampleError, ShardError) as error:
            reasons[str(error)] += 1
        else:
            return
    if reasons:
        ((reason, most),) = reasons.most_common(1)
        raise RecipeError(f"shard {shard.name}: no image can be used: {most} of {reasons.total()}: {reason}")


def _require_one_attack(images: Images, job: Job) -> None:
    """Requires that an image has what at least one of the attacks needs of it.

    Raises:
        ShardError: It has no target class where all attacks want one, or another program's image does not fit it.
    """
    faults: list[ShardError] = []
    for attack, source in itertools.product(job.attacks, job.sources):
        try:
            if attack.target_class == "shard":
                parts.require_target_classes(images, attack.name)
            if isinstance(attack, ExternalAttack) and isinstance(source, ExternalImages):
                source.read_pixels(images, attack)
            return
        except ShardError as error:
            faults.append(error)
    raise faults[0]
