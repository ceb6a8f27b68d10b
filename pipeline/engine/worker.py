"""One Ray actor: a stage that gets items and returns results.

The driver imports this module and must do without torch: what a worker needs, it imports in its own process.
"""

import logging
import os
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import ray

from pipeline.engine import decisions
from pipeline.errors import GnpError, IntegrityError, Interrupted, MissingError, StorageError
from pipeline.ledger import Ledger, leases
from pipeline.ledger.progress import StageTotals
from pipeline.models import malloc
from pipeline.plan.outline import Item, Outline, is_complete, source_scopes
from pipeline.storage import Storage

log = logging.getLogger(__name__)

# A worker without an item for this long returns its freed memory; the next item would have it all cleared page by page.
_RELEASE_AFTER_S = 2.0
# A generator on cores gets a ninth of the time of a scorer that wants the same core.
_NICE = 10


@dataclass(frozen=True)
class ItemResult:
    """What a worker returns for an item.

    Attributes:
        end: `done`; `held`: another run has claimed it; `stopped` on request; `failed`; `broken`: failed, and so would
            every later item, since the device is broken.
        reason: Why it is not done, in one line.
        totals: What was added to the store since `take_totals` was last called.
        store_failed: The store is to blame, not the item.
        lasting: Another try would fail likewise.
        memory_bytes: The most device memory that the worker has held.
    """

    end: Literal["done", "held", "stopped", "failed", "broken"]
    reason: str = ""
    totals: StageTotals = field(default_factory=StageTotals)
    store_failed: bool = False
    lasting: bool = False
    memory_bytes: int = 0


class Worker:
    """A stage in an actor. A failing item gives an `ItemResult`; it never ends the actor."""

    def __init__(self, stage: str, pickled: bytes, plan_id: str, store: str, threads: int, run: str) -> None:
        self._kind = stage
        self._pickled = pickled
        self._plan_id = plan_id
        self._store = store
        self._threads = threads
        self._run = run
        self._stopping = threading.Event()
        self._release: threading.Timer | None = None

    def node(self) -> str:
        """The id of the node that it runs on; called first."""
        return str(ray.get_runtime_context().get_node_id())

    def load(self) -> None:
        """Loads what its items need; called next."""
        from pipeline.models import device
        from pipeline.plan.resolve import unpickle_plan
        from pipeline.stages import STAGES

        self._device = device
        device.configure(self._threads)
        gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        where = device.gpu_or_cpu(has_gpu=gpus > 0)
        device.keep_to_share(where, gpus)
        if self._kind == "generator" and where.type == "cpu":
            os.nice(_NICE)  # scorers on the same cores come first: what is there to score is scored at once
        self._ledger = Ledger(Storage(self._store))
        plan = unpickle_plan(self._pickled)
        self._outline = plan.outline
        self._stage = STAGES[self._kind](plan, self._ledger, where, self._stopping.is_set)

    def stop(self) -> None:
        """Ends the item in hand after the current unit; called beside `run`."""
        self._stopping.set()

    def take_totals(self) -> tuple[StageTotals, int]:
        """What was added to the store since the last call, and the most memory held, in bytes; called beside `run`."""
        return self._stage.take_totals(), self._device.peak_memory_bytes(self._stage.device)

    def live(self) -> None:
        """Never returns: the call fails when this worker dies, busy or not."""
        threading.Event().wait()

    def run(self, item: Item, attempt: int, following: Item | None = None) -> ItemResult:
        """Makes what an item still lacks, unless another run has claimed it.

        Args:
            item: The item.
            attempt: Which try this is, from 1.
            following: An item that will probably be next: its shard is claimed and fetched meanwhile.
        """
        if self._release is not None:
            self._release.cancel()
        self._device.configure(self._threads)  # this runs in a thread of its own, and thread counts are per thread
        result = self._try(item, attempt, following)
        self._release = threading.Timer(_RELEASE_AFTER_S, malloc.release_freed_memory)
        self._release.daemon = True
        self._release.start()
        return replace(result, memory_bytes=self._device.peak_memory_bytes(self._stage.device))

    def _try(self, item: Item, attempt: int, following: Item | None) -> ItemResult:
        try:
            # Only attacking is claimed: an item is scored by the run that attacked it, or gave it up.
            claims = self._kind == "generator" and not is_done(self._outline, item, self._ledger)
            holder = self._claim(item) if claims else None
            if holder is not None:
                return ItemResult("held", holder)
            if following is not None:
                self._stage.announce_next(following, partial(self._require_ours, following))
            return ItemResult("done", totals=self._stage.run(item, attempt=attempt))
        except Interrupted as error:
            return ItemResult("stopped", str(error), self._stage.take_totals())
        except GnpError as error:
            store_failed = isinstance(error, StorageError) and not isinstance(error, (MissingError, IntegrityError))
            lasting = decisions.is_lasting(error, item)
            return ItemResult("failed", str(error), self._stage.take_totals(), store_failed, lasting)
        except Exception as error:  # a defect: one line is listed with the item, the traceback is in the worker's log
            log.exception("item %s", item)
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            end: Literal["broken", "failed"] = "broken" if self._device.is_broken_by(error) else "failed"
            return ItemResult(end, reason, self._stage.take_totals())

    def _require_ours(self, item: Item) -> None:
        """Claims an item.

        Raises:
            Interrupted: It is done, or another run has claimed it.
        """
        if is_done(self._outline, item, self._ledger) or self._claim(item) is not None:
            raise Interrupted(f"{item.name}: done, or another run works on it")

    def _claim(self, item: Item) -> str | None:
        return leases.claim(self._ledger.storage, claim_path(self._plan_id, item), self._run)


def claim_path(plan_id: str, item: Item) -> str:
    """What is claimed for an item: its whole shard, so that runs with different strides do not do the same parts."""
    return f"{plan_id}/{item.source}/{item.selection.shard.name}"


def is_done(outline: Outline, item: Item, ledger: Ledger) -> bool:
    """Whether an item lacks nothing in the store, whichever run made it."""
    committed = ledger.list_committed(source_scopes(outline, item.source), shard=item.selection.shard.name)
    return is_complete(outline, item, committed)
