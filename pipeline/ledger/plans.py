"""Recorded plans and failures: what runs set out to make, what of it is missing, and what they gave up.

    plans/ID.json                                   a plan
    failures/PLAN/SOURCE/SHARD/OFFSET-STRIDE.json   an item that a run of the plan gave up

Missing results are found by the keys of committed units alone.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.data.sample import Part
from pipeline.ledger.keys import Unit


@dataclass(frozen=True)
class Failure:
    """An item that a run gave up.

    Attributes:
        plan: Id of the plan.
        source: Identity of the model attacked.
        shard: Name of the input shard.
        offset: Index of the item's first part.
        stride: Distance between its parts; 1 where the item is the whole shard.
        version: The store's tag of the shard; the failure is void once the shard has another.
        item: Name of the item in messages.
        reason: One line.
        tries: Number of tries.
        run: Id of the run.
        store_failed: The store failed, not the item: later runs retry it in any case.
    """

    plan: str
    source: str
    shard: str
    offset: int
    stride: int
    version: str
    item: str
    reason: str
    tries: int
    run: str
    store_failed: bool = False

    @property
    def key(self) -> str:
        """The key of its record."""
        return f"failures/{self.plan}/{self.source}/{self.shard}/{self.offset}-{self.stride}.json"


def missing_from_plan(plan: Mapping[str, Any], committed: Collection[Unit]) -> tuple[list[str], list[Unit]]:
    """The results of a recorded plan that are not committed.

    Returns:
        Names of the shards without any committed original part, whose number of parts is not known; and the missing
        units of the other shards.
    """
    dataset = plan["dataset"]
    part_counts = {
        unit.part.shard: unit.part.count for unit in committed if (unit.kind, unit.dataset) == ("original", dataset)
    }
    attacks = [("", ""), *((source, attack) for source in plan["sources"] for attack in plan["attacks"])]
    expected = (
        Unit(dataset, Part(shard, index, part_counts[shard]), source, attack, target)
        for shard in plan["shards"]
        for index in range(part_counts.get(shard, 0))
        for source, attack in attacks
        for target in ("", *plan["targets"])
    )
    missing_units = [unit for unit in expected if unit not in committed]
    return [shard for shard in plan["shards"] if shard not in part_counts], missing_units
