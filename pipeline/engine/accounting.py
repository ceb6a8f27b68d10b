"""Counts of a run for its heartbeat, its display, its log and Ray's metrics."""

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pipeline.engine import metrics
from pipeline.engine.metrics import add
from pipeline.engine.state import StageName
from pipeline.ledger.progress import StageTotals, Tally
from pipeline.plan.outline import Item

# One line of JSON per item that a worker has finished with.
items_log = logging.getLogger("gnp.items")

# What is to blame for a failed try: the store, the worker (it died), or the item.
FailureCause = Literal["store", "worker", "item"]


class RunAccount:
    """Counts that the driver keeps of what its workers report; every change goes to Ray's metrics too.

    Attributes:
        run: The run's id.
        totals: What each stage has added to the store.
        failed_tries: Failed tries of an item, by stage.
        failed_items: Number of items given up.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.totals: dict[StageName, StageTotals] = {"generator": StageTotals(), "scorer": StageTotals()}
        self.failed_tries: Counter[StageName] = Counter()
        self.failed_items = 0
        self._peak_memory: dict[tuple[StageName, str], int] = {}

    def add(self, stage: StageName, totals: StageTotals) -> None:
        """Adds what a worker has added to the store since its last report."""
        self.totals[stage] += totals
        add(metrics.IMAGES, totals.images, run=self.run, stage=stage)
        add(metrics.PARTS, totals.parts, run=self.run, stage=stage)
        add(metrics.QUARANTINED, totals.quarantined, run=self.run)
        for phase, seconds in totals.seconds.items():
            add(metrics.SECONDS, seconds, run=self.run, stage=stage, phase=phase)
        for names, counted in totals.eligible.items():
            source, attack, target = names
            add(metrics.COUNTED, counted, run=self.run, source=source, attack=attack, target=target)
            add(metrics.FOOLED, totals.fooled[names], run=self.run, source=source, attack=attack, target=target)

    def count_failed_try(self, stage: StageName, cause: FailureCause) -> None:
        """Counts a failed try of an item."""
        self.failed_tries[stage] += 1
        add(metrics.TRIES_FAILED, 1, run=self.run, stage=stage, cause=cause)

    def count_failed_item(self) -> None:
        """Counts an item that was given up."""
        self.failed_items += 1
        add(metrics.FAILED, 1, run=self.run)

    def record_memory(self, stage: StageName, node: str, memory_bytes: int) -> None:
        """Records the most device memory that a worker has held; per stage and node, the largest counts."""
        peak = max(memory_bytes, self._peak_memory.get((stage, node), 0))
        self._peak_memory[stage, node] = peak
        if peak:
            metrics.MEMORY.set(peak, {"run": self.run, "stage": stage, "node": node[:12]})

    def tally(self, *, items: int, items_left: int, workers: Mapping[StageName, int], seconds: float) -> Tally:
        """The counts at this moment; sets the metrics of items and workers.

        Args:
            items: Number of items that had work to do.
            items_left: Number of those that are not finished.
            workers: Number of busy workers, by stage.
            seconds: Since the run began.
        """
        metrics.LEFT.set(items_left, {"run": self.run})
        for stage, count in workers.items():
            metrics.WORKERS.set(count, {"run": self.run, "stage": stage})
        return Tally(
            items=items,
            items_left=items_left,
            workers=workers,
            attacked=self.totals["generator"],
            scored=self.totals["scorer"],
            tries_failed=self.failed_tries.total(),
            failed=self.failed_items,
            seconds=seconds,
        )


def log_item(
    stage: StageName,
    item: Item,
    *,
    run: str,
    end: str,
    reason: str,
    seconds: float,
    totals: StageTotals,
    **extra: Any,
) -> None:
    """Writes an item's line to the log `gnp.items`, if a handler listens to it."""
    if not items_log.isEnabledFor(logging.INFO):
        return
    success = [
        {
            "source": source,
            "attack": attack,
            "target": target,
            "fooled": totals.fooled[source, attack, target],
            "of": counted,
        }
        for (source, attack, target), counted in totals.eligible.items()
    ]
    line = {
        "time": time.time(),
        "run": run,
        "stage": stage,
        "item": item.name,
        "source": item.source,
        "shard": item.selection.shard.name,
        "end": end,
        "reason": reason,
        "seconds": round(seconds, 3),
        "parts": totals.parts,
        "images": totals.images,
        "quarantined": totals.quarantined,
        "phases": {phase: round(spent, 3) for phase, spent in totals.seconds.items()},
        "success": success,
        **extra,
    }
    items_log.info("%s", json.dumps(line))
