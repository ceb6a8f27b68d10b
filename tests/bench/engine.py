"""Cost of scheduling items. Modules that workers import from here do not import torch."""

import functools
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import ray

from pipeline.engine import actors, scheduler
from pipeline.engine.worker import ItemResult, Worker
from pipeline.ledger.progress import StageTotals
from pipeline.plan.outline import Item, PickledPlan
from pipeline.plan.pools import Pools, PoolSizes, WorkerShape
from pipeline.storage import Storage
from tests.bench.figures import Figure, seconds
from tests.scale.plans import Idle, item, large_plan
from tests.scale.processes import memory_mb

_SLEEP_S = 5.0
_ROUNDS = 3


class Sleeper(Worker):
    """A generator that waits until all have started, and then takes five seconds per item; a scorer takes no time."""

    def __init__(self, stage: str, _sealed: bytes, _plan: str, store: str, _threads: int, _run: str) -> None:
        self._sleeps = stage == "generator"
        self._folder = Path(store)
        self._workers = int(self._folder.name)
        self._all_started = False

    def load(self) -> None:
        """Loads nothing."""

    def run(self, item: Item, attempt: int, following: Item | None = None) -> ItemResult:
        del attempt, following
        if not self._sleeps:
            return ItemResult("done")
        if not self._all_started:
            (self._folder / item.selection.shard.name).touch()
            while len(list(self._folder.iterdir())) < self._workers:
                time.sleep(0.01)
            self._all_started = True
        time.sleep(_SLEEP_S)
        return ItemResult("done")

    def take_totals(self) -> tuple[StageTotals, int]:
        return StageTotals(), 0


def _scheduler(folder: str, workers: int) -> scheduler.Scheduler:
    """A scheduler of light workers; the name of the store is their number."""
    planned = PickledPlan(replace(large_plan(), selections=()), b"")
    sizing = PoolSizes(WorkerShape(workers, 0.0, 0.01), WorkerShape(1, 0.0, 0.01))
    return scheduler.Scheduler(
        planned,
        "plan",
        Storage(f"{folder}/{workers}", create=True),
        sizing,
        Pools(generators=workers, scorers=1),
    )


def engine() -> list[Figure]:
    """Efficiency with workers that sleep five seconds per item, and the cost of items that take no time."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    figures = []
    setattr(actors, "Worker", Sleeper)  # noqa: B010
    for workers in (1, 2, 4, 8, 16, 64):
        with tempfile.TemporaryDirectory() as folder:
            running = _scheduler(folder, workers)
            running.work([item(number) for number in range(_ROUNDS * workers)], threading.Event())
            ended = time.time()
            began = max(path.stat().st_mtime for path in Path(folder, str(workers)).iterdir())
            running.close()
        figures.append(
            Figure(f"{workers} workers that sleep 5 s", _SLEEP_S * _ROUNDS / (ended - began), "×", None, 0.95)
        )
    setattr(actors, "Worker", Idle)  # noqa: B010
    with tempfile.TemporaryDirectory() as folder:
        running, memory, done = _scheduler(folder, 1), [], 0
        for count in (1_000, 10_000):
            items = [item(number) for number in range(done, count)]
            took = seconds(functools.partial(running.work, items, threading.Event()))
            each_ms, done = 1000 * took / (count - done), count
            memory.append(memory_mb())
        running.close()
    ray.shutdown()
    feeds = 1000 / each_ms
    return [
        *figures,
        Figure("an item of no work, of 10,000", each_ms, "ms", None, -20),
        Figure("the driver's memory, from 1,000 items to 10,000", memory[1] - memory[0], "MB more", None, -20),
        Figure("items that one driver can hand out", feeds, "a second"),
        Figure("so an item must take 1,000 GPUs at least", 1000 / feeds, "s"),
    ]
