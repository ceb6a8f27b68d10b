"""Images that could not be used: which, why, and another try for them."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import codec, shards
from pipeline.errors import SampleError
from pipeline.ledger import Ledger, Marker
from pipeline.plan import Plan, Take
from pipeline.sample import Part, Rejected
from pipeline.shards import Shard


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


def reconsider(plan: Plan, ledger: Ledger) -> list[Part]:
    """Tries the quarantined images of a plan again, and revokes the parts in which one has become usable.

    What made an image unusable can change without the shard: another release of an image library. Its part is then made
    again, whole; the images beside it come out as they were. Not to be called while another run is at work.

    Returns:
        The parts that are to be made again.
    """
    takes = {take.shard.name: take for take in plan.takes}
    by_shard: dict[str, list[Marker]] = defaultdict(list)
    for marker in ledger.markers(ledger.units(f"original/{plan.dataset}")):
        if marker.fact("quarantined") and marker.unit.part.shard in takes:
            by_shard[marker.unit.part.shard].append(marker)
    usable: list[Part] = []
    for name, markers in by_shard.items():
        with shards.spool(takes[name].shard) as shard:
            usable += [marker.unit.part for marker in markers if _any_usable(plan, takes[name], shard, marker)]
    ledger.revoke(plan.dataset, usable)
    return usable


def _any_usable(plan: Plan, take: Take, shard: Shard, marker: Marker) -> bool:
    spec, keys = plan.job.data, {row["key"] for row in marker.fact("quarantined")}
    if marker.fact("shard")["sha256"] != shard.sha256:
        return False
    first = marker.unit.part.index * spec.part_size
    total = len(shard) if take.images is None else min(len(shard), take.images)
    for sample in shard.samples(range(first, min(first + spec.part_size, total)), classes=spec.classes):
        if isinstance(sample, Rejected) or sample.key not in keys:
            continue
        try:
            codec.decode(sample.image, spec.preparation)
        except SampleError:
            continue
        return True
    return False
