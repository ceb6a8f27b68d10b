"""What handing items out costs. No module that workers import from here takes torch."""

import functools
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import ray

from pipeline.engine import scheduler
from pipeline.engine.worker import Receipt, Worker
from pipeline.ledger.progress import Made
from pipeline.plan.outline import Item, Prepared
from pipeline.plan.pools import Crew, Pools, Sizing
from pipeline.storage import Storage
from tests import scale
from tests.bench.figures import Figure, seconds

_SLEEP_S, _ROUNDS = 5.0, 3


class Sleeper(Worker):
    """A worker that waits until all are there, and then needs five seconds for each item; a scorer needs none."""

    def __init__(self, stage: str, _sealed: bytes, _plan: str, store: str, _threads: int, _run: str) -> None:
        self._sleeps, self._folder, self._workers = stage == "generator", Path(store), int(Path(store).name)
        self._there = False

    def run(self, item: Item, attempt: int, following: Item | None = None) -> Receipt:
        del attempt, following
        if not self._sleeps:
            return Receipt("done")
        if not self._there:
            (self._folder / item.take.shard.name).touch()
            while len(list(self._folder.iterdir())) < self._workers:
                time.sleep(0.01)
            self._there = True
        time.sleep(_SLEEP_S)
        return Receipt("done")

    def collected(self) -> tuple[Made, int]:
        return Made(), 0


def _office(folder: str, workers: int) -> scheduler.Office:
    """An office of light workers; the store's name tells them how many they are."""
    planned = Prepared(replace(scale.great_plan(), takes=()), b"")
    sizing = Sizing(Crew(workers, 0.0, 0.01), Crew(1, 0.0, 0.01))
    return scheduler.Office(
        planned,
        "plan",
        Storage(f"{folder}/{workers}", create=True),
        sizing,
        Pools(generators=workers, scorers=1),
        items=0,
    )


def engine() -> list[Figure]:
    """How near to one item per worker and five seconds; and what an item costs that needs no time."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    found = []
    setattr(scheduler, "Worker", Sleeper)  # noqa: B010
    for workers in (1, 2, 4, 8, 16, 64):
        with tempfile.TemporaryDirectory() as folder:
            handed = _office(folder, workers)
            handed.work([scale._item(number) for number in range(_ROUNDS * workers)], threading.Event())
            ended = time.time()
            began = max(path.stat().st_mtime for path in Path(folder, str(workers)).iterdir())
            handed.close()
        found.append(Figure(f"{workers} workers that sleep 5 s", _SLEEP_S * _ROUNDS / (ended - began), "×", None, 0.95))
    setattr(scheduler, "Worker", scale.Idle)  # noqa: B010
    with tempfile.TemporaryDirectory() as folder:
        handed, memory, done = _office(folder, 1), [], 0
        for count in (1_000, 10_000):
            items = [scale._item(number) for number in range(done, count)]
            took = seconds(functools.partial(handed.work, items, threading.Event()))
            each_ms, done = 1000 * took / (count - done), count
            memory.append(scale.memory_mb())
        handed.close()
    ray.shutdown()
    feeds = 1000 / each_ms
    return [
        *found,
        Figure("an item of no work, of 10,000", each_ms, "ms", None, -20),
        Figure("the driver's memory, from 1,000 items to 10,000", memory[1] - memory[0], "MB more", None, -20),
        Figure("items that one driver can hand out", feeds, "a second"),
        Figure("so an item must take 1,000 GPUs at least", 1000 / feeds, "s"),
    ]
