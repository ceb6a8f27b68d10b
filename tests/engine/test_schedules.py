"""Random schedules of a run: the real scheduler, with workers, nodes and a clock that are simulated.

Generators commit part by part and scorers score what is committed, while workers die, fail to start, break or find
items claimed, and nodes are drained or lost. At the end each item is scored to its last part, or listed as failed.
"""

import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.data.sample import ShardFile
from pipeline.engine import accounting, claimed, cluster, scheduler
from pipeline.engine.actors import Died, Placed, Started
from pipeline.engine.decisions import ATTEMPTS
from pipeline.engine.state import WorkerRecord, WorkerState
from pipeline.engine.worker import ItemResult
from pipeline.ledger import leases
from pipeline.ledger.progress import StageTotals
from pipeline.plan.outline import Item, Outline, PickledPlan, ShardSelection
from pipeline.plan.pools import Pools, PoolSizes, WorkerShape
from pipeline.storage import Storage

SCHEDULES = 400
NODES = ("a", "b", "c")
PARTS = 5


@dataclass
class World:
    """What is true of a simulated cluster and store.

    Attributes:
        rng: The source of all events.
        rough: Probability of a fault at each step of a worker.
        poisonous: Items that kill every generator.
        originals: Item → committed original parts, the next of which is made before it is attacked.
        attacked: Item → parts with committed adversarial images.
        scored: Item → of these, the parts with committed results.
        now: The time in seconds.
        early_on_originals: How often scoring began with originals alone.
        live: Nodes that are up.
        draining: Nodes that are about to go.
    """

    rng: random.Random
    rough: float
    poisonous: set[Item]
    originals: dict[Item, int]
    attacked: dict[Item, int]
    scored: dict[Item, int]
    now: float = 0.0
    early_on_originals: int = 0
    live: set[str] = field(default_factory=lambda: set(NODES))
    draining: set[str] = field(default_factory=set)

    def is_done(self, each: Item) -> bool:
        """Whether an item is scored to its last part."""
        return self.attacked[each] == self.scored[each] == PARTS

    def happens(self, share: float = 1.0) -> bool:
        """Whether a fault happens now."""
        return self.rng.random() < self.rough * share

    def pass_time(self) -> None:
        """Lets some seconds pass, in which nodes may be drained, lost and replaced; one stays as it is."""
        self.now += self.rng.choice((0.1, 1.0, 5.0))
        for node in NODES[1:]:
            if self.happens(0.1):
                self.draining.add(node)
            elif node in self.draining and self.rng.random() < 0.2:
                self.live.discard(node)
                self.draining.discard(node)
            elif node not in self.live and self.rng.random() < 0.5:
                self.live.add(node)


class SimulatedActors:
    """`Actors` without Ray: each step of a worker takes one turn of the loop, or several."""

    world: World

    def __init__(self, *_: object) -> None:
        self._workers: list[WorkerRecord] = []
        self._stopping: set[WorkerRecord] = set()
        self._held: set[WorkerRecord] = set()  # their item is claimed by another run
        self._unreported: dict[WorkerRecord, StageTotals] = defaultdict(StageTotals)

    def start(self, worker: WorkerRecord, shape: WorkerShape) -> None:
        del shape
        self._workers.append(worker)

    def kill(self, worker: WorkerRecord) -> None:
        if worker in self._workers:
            self._workers.remove(worker)

    def run(self, worker: WorkerRecord) -> None:
        twins = [other for other in self._workers if other.stage == worker.stage and other.item == worker.item]
        assert twins == [worker], "two workers of a stage work on the same item"
        if worker.is_early and worker.item is not None and not self.world.attacked[worker.item]:
            self.world.early_on_originals += 1
        self._unreported[worker] = StageTotals()
        if worker.stage == "generator" and self.world.happens():
            self._held.add(worker)

    def stop(self, worker: WorkerRecord) -> None:
        self._stopping.add(worker)

    def wait(self, _: float) -> Iterator[tuple[WorkerRecord, Placed | Started | ItemResult | Died]]:
        self.world.pass_time()
        for worker in list(self._workers):
            event = self._step(worker) if worker in self._workers and self.world.rng.random() < 0.7 else None
            if event is not None:
                if isinstance(event, Died):
                    self._workers.remove(worker)
                yield worker, event

    def _step(self, worker: WorkerRecord) -> Placed | Started | ItemResult | Died | None:
        world = self.world
        if worker.state is WorkerState.PENDING:
            places = sorted(world.live - world.draining)
            return Placed(world.rng.choice(places))
        if worker.node not in world.live or world.happens(0.2):
            return Died("lost")
        if worker.state is WorkerState.STARTING:
            return Started()
        if worker.item is None:
            return None
        if worker in self._held:
            self._held.remove(worker)
            return self._result(worker, "held")
        if worker in self._stopping:
            return self._result(worker, "stopped")
        if world.happens(0.3):
            return self._result(worker, world.rng.choice(("failed", "broken")))
        return self._score(worker, worker.item) if worker.stage == "scorer" else self._attack(worker, worker.item)

    def _attack(self, worker: WorkerRecord, item: Item) -> ItemResult | Died | None:
        if item in self.world.poisonous and self.world.attacked[item] == PARTS - 2:
            return Died("killed by its item")
        if self.world.attacked[item] == PARTS:
            return self._result(worker, "done")
        if self.world.originals[item] == self.world.attacked[item]:
            self.world.originals[item] += 1
            self._unreported[worker] += StageTotals(originals=1)
        else:
            self.world.attacked[item] += 1
            self._unreported[worker] += StageTotals(parts=1)
        return None

    def _score(self, worker: WorkerRecord, item: Item) -> ItemResult | None:
        if self.world.scored[item] == self.world.attacked[item]:
            return self._result(worker, "done")
        self.world.scored[item] += 1
        self._unreported[worker] += StageTotals(parts=1)
        return None

    def _result(self, worker: WorkerRecord, end: str) -> ItemResult:
        self._stopping.discard(worker)
        return ItemResult(end, totals=self._unreported.pop(worker, StageTotals()))  # type: ignore[arg-type]

    def totals(self) -> Iterator[tuple[WorkerRecord, StageTotals, int]]:
        for worker in self._workers:
            if worker.item is not None and self.world.rng.random() < 0.5:
                yield from self.totals_of(worker)

    def totals_of(self, worker: WorkerRecord) -> Iterator[tuple[WorkerRecord, StageTotals, int]]:
        yield worker, self._unreported.pop(worker, StageTotals()), 0


def item(number: int) -> Item:
    name = f"s-{number}"
    return Item(ShardSelection(ShardFile(f"in/{name}.tar", name, 1, "v"), None), "source")


@pytest.fixture
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: SimulatedActors.world.now)
    monkeypatch.setattr(scheduler, "time", clock)
    monkeypatch.setattr(claimed, "time", clock)
    monkeypatch.setattr(claimed, "is_done", lambda _, each, __: SimulatedActors.world.is_done(each))
    monkeypatch.setattr(leases, "other_holder", lambda *_: None)
    monkeypatch.setattr(scheduler, "Actors", SimulatedActors)
    monkeypatch.setattr(accounting, "add", lambda *_, **__: None)
    monkeypatch.setattr(cluster, "live_nodes", lambda: set(SimulatedActors.world.live))
    monkeypatch.setattr(cluster, "draining_nodes", lambda: set(SimulatedActors.world.draining))


@pytest.mark.usefixtures("_simulated")
def test_each_item_is_scored_to_its_last_part_or_listed(tmp_path: Path) -> None:
    storage, early = Storage(str(tmp_path / "store"), create=True), 0
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        items = [item(number) for number in range(rng.choice((1, 3, 12)))]
        poisonous = {each for each in items if rng.random() < 0.1}
        originals, attacked, scored = (dict.fromkeys(items, 0) for _ in range(3))
        world = World(rng, rng.choice((0.0, 0.02, 0.1)), poisonous, originals, attacked, scored)
        SimulatedActors.world = world
        sizing = PoolSizes(
            WorkerShape(rng.choice((1, 3)), 1.0, 1.0),
            WorkerShape(rng.choice((1, 3)), 1.0, 1.0, at_first=rng.choice((None, 1))),
        )
        record = {"dataset": "d", "sources": {"source": {}}, "attacks": {}, "targets": {}, "shards": []}
        plan = PickledPlan(Outline(record, ()), b"")
        running = scheduler.Scheduler(plan, "p", storage, sizing, Pools(), items)
        running.work(list(items), threading.Event())
        for each in items:
            done = world.is_done(each)
            assert done or each.name in running.failed, (seed, each, world.attacked[each], world.scored[each])
            assert not (each in poisonous and done)
        for name, failure in running.failed.items():
            assert failure.tries == ATTEMPTS, (seed, name)
        assert world.rough or running.failed.keys() == {each.name for each in poisonous}, seed
        assert running.tally().items_left == 0
        running.close()
        early += world.early_on_originals
    assert early > SCHEDULES / 10
