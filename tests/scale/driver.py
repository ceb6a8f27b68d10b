"""Row c: the driver's memory after many items, with a real Ray and workers that do nothing."""

import gc
import tempfile
import threading
import time
from dataclasses import replace
from typing import Any

import ray

from pipeline.engine import actors, scheduler
from pipeline.plan.outline import PickledPlan
from pipeline.plan.pools import Node, Pools, size_pools
from pipeline.storage import Storage
from tests.scale.plans import Idle, item, large_plan
from tests.scale.processes import measured, memory_mb

ITEMS = (1_000, 10_000, 100_000)


def hand_out(budget_s: str) -> dict[str, Any]:
    """The driver's memory after each number of ITEMS; numbers beyond the time budget are left out."""
    setattr(actors, "Worker", Idle)  # noqa: B010  # mypy insists on the class's own type
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    pools = Pools(generators=1, scorers=1)
    items = [item(number) for number in range(max(ITEMS))]  # created first: the plan's own memory is no growth
    found: dict[str, Any] = {"before_mb": round(memory_mb()), "after": []}
    with tempfile.TemporaryDirectory() as folder:
        store = Storage(folder)
        planned = PickledPlan(replace(large_plan(), selections=()), b"")
        running = scheduler.Scheduler(planned, "plan", store, size_pools(pools, [Node(2, 0)], scoring=0.25), pools)
        done, started = 0, time.monotonic()
        for count in ITEMS:
            spent = time.monotonic() - started
            if done and spent * (count - done) / done > float(budget_s):
                found["left_out"] = f"{count} items would take {spent * count / done:.0f} s"
                break
            running.work(items[done:count], threading.Event())
            gc.collect()
            seconds = round(time.monotonic() - started, 1)
            found["after"].append({"items": count, "mb": round(memory_mb(), 1), "seconds": seconds})
            done = count
        running.close()
    ray.shutdown()
    return found


def row_c() -> dict[str, Any]:
    found = measured(hand_out, 360, OMP_NUM_THREADS="1")
    first, *_, last = found["after"]
    growth_mb = 1000 * (last["mb"] - first["mb"]) / (last["items"] - first["items"])
    flat = last["items"] == max(ITEMS) and growth_mb < 1
    return {**found, "mb_per_1000_items": round(growth_mb, 3), "ok": flat and last["mb"] < 500}
