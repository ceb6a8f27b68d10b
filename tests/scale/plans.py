"""A huge plan, its items, and a worker that does nothing."""

import threading

from pipeline.data.sample import ShardFile
from pipeline.engine.worker import ItemResult, Worker
from pipeline.ledger import make_id
from pipeline.plan.outline import Item, Outline, ShardSelection

SHARDS = 2_500


def large_plan() -> Outline:
    """A plan of 2,500 shards, one source, one attack and one target: four markers per part."""
    shards = [ShardFile(f"s3://in/s-{n:05d}.tar", f"s-{n:05d}", 10**9, f"v{n}") for n in range(SHARDS)]
    model = {"model": "resnet50.tv_in1k", "digest": "0" * 64, "policy": "direct", "input_size": 224}
    described = {
        "dataset": make_id("imagenet", {"part_size": 512}),
        "shards": [shard.name for shard in shards],
        "sources": {make_id("resnet50", model): model},
        "attacks": {make_id("gnp+mi", {"steps": 10}): {"steps": 10}},
        "targets": {make_id("resnet50", model): model},
    }
    return Outline(described, tuple(ShardSelection(shard, None) for shard in shards))


def item(number: int) -> Item:
    """An item of a shard that does not exist."""
    name = f"s-{number:06d}"
    return Item(
        ShardSelection(ShardFile(f"s3://in/{name}.tar", name, 10**9, f"v{number}"), None), "source-000000000000"
    )


class Idle(Worker):
    """A worker that finishes every item at once."""

    def __init__(self, *_: object) -> None:
        self._stopping = threading.Event()

    def load(self) -> None:
        """Loads nothing."""

    def run(self, item: Item, attempt: int, following: Item | None = None) -> ItemResult:
        del item, attempt, following
        return ItemResult("done")
