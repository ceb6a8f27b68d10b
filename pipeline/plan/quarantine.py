"""Another try of quarantined images, which revokes the parts whose images can be used now."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.data import codec, shards
from pipeline.data.sample import Part, RejectedSample
from pipeline.data.shards import Shard
from pipeline.errors import SampleError
from pipeline.ledger import Ledger, Marker, leases
from pipeline.ledger.leases import RunRecord
from pipeline.plan.outline import PickledPlan, ShardSelection
from pipeline.plan.resolve import Plan, unpickle_plan


def retry_quarantined(prepared: PickledPlan, ledger: Ledger) -> list[str]:
    """Tries quarantined images again, unless another run could be reading what that revokes.

    Returns:
        What was done, one line for each revoked part, and why it was not done, where another run is active.
    """
    plan = replace(unpickle_plan(prepared.pickled), selections=prepared.outline.selections)
    lines: list[str] = []
    blocking: list[RunRecord] = []
    with leases.exclusive_access(ledger.storage) as renew_and_find_other:

        def other_run() -> RunRecord | None:
            run = renew_and_find_other()
            if run is not None:
                blocking.append(run)
            return run

        if other_run() is None:
            for part, reason in revoke_usable_parts(plan, ledger, other_run=other_run):
                lines.append(
                    f"{part.shard}, part {part.index} of {part.count}, is made again, for all recipes: {reason}"
                )
    lines += [
        f"quarantined images are not tried again while run {run.id} on {run.record['host']} is active"
        for run in blocking
    ]
    return lines


def revoke_usable_parts(
    plan: Plan, ledger: Ledger, *, other_run: Callable[[], RunRecord | None]
) -> Iterator[tuple[Part, str]]:
    """Tries the quarantined images of a plan again, and revokes the parts in which one has become usable.

    An image can become usable although its shard is the same: with another release of an image library. The whole part
    is then made again; its other images come out as before. The results of other recipes for the part are revoked as
    well, for they were made from fewer images: the next run of such a recipe makes them again. Also revoked are results
    made from an original part that has since been replaced, which can only happen when a lease ran out while its run
    was alive.

    Args:
        plan: The plan.
        ledger: The store's ledger.
        other_run: Finds another active run (see `leases.exclusive_access`): it could be reading what is about to be
            revoked, so the retry ends there.

    Yields:
        The revoked parts, and why.
    """
    selected = {selection.shard.name for selection in plan.selections}
    quarantined: dict[str, list[Marker]] = defaultdict(list)
    digests: dict[Part, Any] = {}
    for marker in ledger.read_markers(ledger.list_units(f"original/{plan.dataset}")):
        digests[marker.unit.part] = marker.fact("pixels_sha256")
        if marker.fact("quarantined") and marker.unit.part.shard in selected:
            quarantined[marker.unit.part.shard].append(marker)
    for part, reason in itertools.chain(_usable_parts(plan, quarantined), _outdated_parts(plan, ledger, digests)):
        if other_run() is not None:
            return
        ledger.revoke(plan.dataset, [part])
        yield part, reason
        del digests[part]


def _usable_parts(plan: Plan, quarantined: Mapping[str, Sequence[Marker]]) -> Iterator[tuple[Part, str]]:
    """The parts of which a quarantined image can be used now."""
    selections = {selection.shard.name: selection for selection in plan.selections}
    for name, markers in quarantined.items():
        with shards.download_shard(selections[name].shard) as shard:
            for marker in markers:
                if _has_usable_image(plan, selections[name], shard, marker):
                    yield marker.unit.part, "quarantined images can be used now"


def _outdated_parts(plan: Plan, ledger: Ledger, digests: Mapping[Part, Any]) -> Iterator[tuple[Part, str]]:
    """The parts whose adversarial images were made from an original part other than the one committed now."""
    for marker in ledger.read_markers(ledger.list_units(f"adversarial/{plan.dataset}")):
        part = marker.unit.part
        if part in digests and marker.fact("original_pixels_sha256") != digests[part]:
            yield part, "it was attacked before its original was made again"


def _has_usable_image(plan: Plan, selection: ShardSelection, shard: Shard, marker: Marker) -> bool:
    """Whether fewer samples of a part are rejected now; counted per key, since a key can occur twice, once usable."""
    spec = plan.job.data
    before = Counter(row["key"] for row in marker.fact("quarantined"))
    if marker.fact("shard")["sha256"] != shard.sha256:
        return False
    first = marker.unit.part.index * spec.part_size
    total = len(shard) if selection.images is None else min(len(shard), selection.images)
    now = Counter[str]()
    indices = range(first, min(first + spec.part_size, total))
    for sample in shard.samples(indices, classes=spec.classes, label=spec.label):
        if sample.key not in before:
            continue
        try:
            if isinstance(sample, RejectedSample):
                raise SampleError(sample.reason)
            codec.decode(sample.image, spec.preparation)
        except SampleError:
            now[sample.key] += 1
    return any(now[key] < count for key, count in before.items())
