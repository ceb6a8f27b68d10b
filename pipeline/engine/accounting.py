"""What a run has made and met so far: for its heartbeat, its display, its log and Ray's metrics."""

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.engine import metrics
from pipeline.engine.metrics import add
from pipeline.ledger.progress import Made, Tally
from pipeline.plan.outline import Item

# One line of JSON an item that a worker is done with.
items_log = logging.getLogger("gnp.items")

Kind = Literal["generator", "scorer"]


@dataclass
class Account:
    """Kept by the driver, of what workers say.

    Attributes:
        run: The run's name.
        made: By stage.
        tries_failed: Tries of an item that failed, by stage.
        failed: Items given up.
    """

    run: str
    made: dict[Kind, Made] = field(default_factory=lambda: {"generator": Made(), "scorer": Made()})
    tries_failed: Counter[Kind] = field(default_factory=Counter)
    failed: int = 0
    _held: dict[tuple[Kind, str], int] = field(default_factory=dict)

    def add(self, stage: Kind, made: Made) -> None:
        """Takes in what a worker has made since it last said so."""
        self.made[stage] += made
        add(metrics.IMAGES, made.images, run=self.run, stage=stage)
        add(metrics.PARTS, made.parts, run=self.run, stage=stage)
        add(metrics.QUARANTINED, made.quarantined, run=self.run)
        for phase, seconds in made.seconds.items():
            add(metrics.SECONDS, seconds, run=self.run, stage=stage, phase=phase)
        for cell, counted in made.counted.items():
            source, attack, target = cell
            add(metrics.COUNTED, counted, run=self.run, source=source, attack=attack, target=target)
            add(metrics.FOOLED, made.fooled[cell], run=self.run, source=source, attack=attack, target=target)

    def try_failed(self, stage: Kind, cause: Literal["store", "worker", "item"]) -> None:
        """Counts a try of an item that failed: by the store's fault, with its worker's death, or otherwise."""
        self.tries_failed[stage] += 1
        add(metrics.TRIES_FAILED, 1, run=self.run, stage=stage, cause=cause)

    def gave_up(self) -> None:
        """Counts an item that was given up."""
        self.failed += 1
        add(metrics.FAILED, 1, run=self.run)

    def holds(self, stage: Kind, node: str, memory_bytes: int) -> None:
        """Notes how much of its device's memory a worker has held; of a node's, the one that held most counts."""
        most = max(memory_bytes, self._held.get((stage, node), 0))
        self._held[stage, node] = most
        if most:
            metrics.MEMORY.set(most, {"run": self.run, "stage": stage, "node": node[:12]})

    def tally(self, *, items: int, items_left: int, workers: Mapping[Kind, int], seconds: float) -> Tally:
        """How the run stands; the metrics are told as well."""
        metrics.LEFT.set(items_left, {"run": self.run})
        for stage, count in workers.items():
            metrics.WORKERS.set(count, {"run": self.run, "stage": stage})
        return Tally(
            items=items,
            items_left=items_left,
            workers=workers,
            attacked=self.made["generator"],
            scored=self.made["scorer"],
            tries_failed=self.tries_failed.total(),
            failed=self.failed,
            seconds=seconds,
        )


def log_item(
    stage: Kind, item: Item, *, run: str, end: str, reason: str, seconds: float, made: Made, **told: Any
) -> None:
    """Writes an item's line to the log `gnp.items`, which says nothing unless somebody listens."""
    if not items_log.isEnabledFor(logging.INFO):
        return
    success = [
        {
            "source": source,
            "attack": attack,
            "target": target,
            "fooled": made.fooled[source, attack, target],
            "of": counted,
        }
        for (source, attack, target), counted in made.counted.items()
    ]
    line = {
        "time": time.time(),
        "run": run,
        "stage": stage,
        "item": item.name,
        "source": item.source,
        "shard": item.take.shard.name,
        "end": end,
        "reason": reason,
        "seconds": round(seconds, 3),
        "parts": made.parts,
        "images": made.images,
        "quarantined": made.quarantined,
        "phases": {phase: round(spent, 3) for phase, spent in made.seconds.items()},
        "success": success,
        **told,
    }
    items_log.info("%s", json.dumps(line))
