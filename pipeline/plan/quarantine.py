"""Images that could not be used: which, why, and another try for them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.data import codec, shards
from pipeline.data.sample import Part, Rejected
from pipeline.data.shards import Shard
from pipeline.errors import SampleError
from pipeline.ledger import Ledger, Marker, leases
from pipeline.ledger.leases import Seen
from pipeline.plan.outline import Prepared, Take
from pipeline.plan.resolve import Plan, unseal


@dataclass(frozen=True)
class Quarantined:
    """One image that could not be used.

    Attributes:
        dataset: Identity of the prepared images.
        shard: The input shard.
        key: Of the sample.
        reason: One line.
    """

    dataset: str
    shard: str
    key: str
    reason: str


def listed(ledger: Ledger) -> Iterator[Quarantined]:
    """Every image that could not be used, off the markers of the original parts."""
    for marker in ledger.markers(sorted(ledger.units("original"))):
        for row in marker.fact("quarantined"):
            yield Quarantined(marker.unit.dataset, marker.unit.part.shard, row["key"], row["reason"])


def retry(prepared: Prepared, ledger: Ledger) -> list[str]:
    """Has quarantined images tried again, unless another run could be reading what that revokes; says what it did."""
    plan, said = replace(unseal(prepared.sealed), takes=prepared.outline.takes), list[str]()
    with leases.alone(ledger.storage) as look:
        at_work: list[Seen] = []

        def other() -> Seen | None:
            found = look()
            at_work.extend([found] if found else [])
            return found

        if other() is None:
            for part, why in reconsider(plan, ledger, other=other):
                said.append(f"{part.shard}, part {part.index} of {part.count}, is made again, for every recipe: {why}")
        for run in at_work:
            host = run.record["host"]
            said.append(f"quarantined images are not tried again while run {run.id} on {host} is at work")
    return said


def reconsider(plan: Plan, ledger: Ledger, *, other: Callable[[], Seen | None]) -> Iterator[tuple[Part, str]]:
    """Tries the quarantined images of a plan again, and revokes the parts in which one has become usable.

    What made an image unusable can change without the shard: another release of an image library. Its part is then made
    again, whole; the images beside it come out as they were. What other recipes made of the part goes as well, for it
    was made of fewer images: their next run makes it anew. So does what was made of an original that another stands for
    by now, which cannot come about unless a lease ran out under a run that lived.

    Args:
        plan: Whose images.
        ledger: Where.
        other: Names another run that is at work (`runs.alone`): it could be reading what is to be revoked, so nothing
            more is tried then.

    Yields:
        The parts that are to be made again, and why.
    """
    takes = {take.shard.name: take for take in plan.takes}
    by_shard: dict[str, list[Marker]] = defaultdict(list)
    pixels: dict[Part, Any] = {}
    for marker in ledger.markers(ledger.units(f"original/{plan.dataset}")):
        pixels[marker.unit.part] = marker.fact("pixels_sha256")
        if marker.fact("quarantined") and marker.unit.part.shard in takes:
            by_shard[marker.unit.part.shard].append(marker)
    for name, markers in by_shard.items():
        with shards.spool(takes[name].shard) as shard:
            for marker in markers:
                if not _any_usable(plan, takes[name], shard, marker):
                    continue
                if other() is not None:
                    return
                ledger.revoke(plan.dataset, [marker.unit.part])
                yield marker.unit.part, "quarantined images can be used now"
                del pixels[marker.unit.part]
    for marker in ledger.markers(ledger.units(f"adversarial/{plan.dataset}")):
        part = marker.unit.part
        if part in pixels and marker.fact("original_pixels_sha256") != pixels[part]:
            if other() is not None:
                return
            ledger.revoke(plan.dataset, [part])
            yield part, "it was attacked before its original was made again"
            del pixels[part]


def _any_usable(plan: Plan, take: Take, shard: Shard, marker: Marker) -> bool:
    """Whether fewer samples of a part are rejected than were: a key can stand there twice, once good."""
    spec, rejected = plan.job.data, Counter(row["key"] for row in marker.fact("quarantined"))
    if marker.fact("shard")["sha256"] != shard.sha256:
        return False
    first = marker.unit.part.index * spec.part_size
    total = len(shard) if take.images is None else min(len(shard), take.images)
    still = Counter[str]()
    for sample in shard.samples(range(first, min(first + spec.part_size, total)), classes=spec.classes):
        if sample.key not in rejected:
            continue
        try:
            if isinstance(sample, Rejected):
                raise SampleError(sample.reason)
            codec.decode(sample.image, spec.preparation)
        except SampleError:
            still[sample.key] += 1
    return any(still[key] < count for key, count in rejected.items())
