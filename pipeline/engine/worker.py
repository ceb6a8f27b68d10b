"""One actor: a stage; items in, receipts out.

The driver knows this module, and is to do without torch: what a worker needs it imports in its own process.
"""

import logging
import threading
from dataclasses import dataclass, field, replace
from functools import partial

import ray

from pipeline.errors import GnpError, IntegrityError, Interrupted, MissingError, StorageError
from pipeline.ledger import Ledger, leases
from pipeline.ledger.progress import Made
from pipeline.models import malloc
from pipeline.plan.outline import Item, complete, scopes
from pipeline.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Receipt:
    """What a worker says of an item that it was handed.

    Attributes:
        end: `done`; `held` by another run; `stopped` on request; `failed`; `broken`: failed, and so has the device.
        reason: Why it is not done, in one line.
        made: What was added to the store since `collected` was last asked.
        store_failed: The store was at fault and not the item.
        memory_bytes: The most that the worker has held of its device's memory.
    """

    end: str
    reason: str = ""
    made: Made = field(default_factory=Made)
    store_failed: bool = False
    memory_bytes: int = 0


class Worker:
    """A stage in an actor. An item's failure is a receipt, never the actor's end."""

    def __init__(self, stage: str, sealed: bytes, plan_id: str, store: str, threads: int, run: str) -> None:
        from pipeline.engine import device
        from pipeline.plan.resolve import unseal
        from pipeline.stages import STAGES

        self._device, self._threads, self._attacks = device, threads, stage == "generator"
        self._device.settle(threads)
        self._plan_id, self._run = plan_id, run
        self._stopping = threading.Event()
        self._ledger = Ledger(Storage(store))
        plan = unseal(sealed)
        self._outline = plan.outline
        self._stage = STAGES[stage](plan, self._ledger, device.own(), self._stopping.is_set)

    def ready(self) -> str:
        """The node that it runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def stop(self) -> None:
        """Ends the item in hand between two units; called beside `run`."""
        self._stopping.set()

    def collected(self) -> tuple[Made, int]:
        """What was added to the store since this was last asked, and the most memory held; called beside `run`."""
        return self._stage.collected(), self._device.most_held_bytes(self._stage.device)

    def live(self) -> None:
        """Never returns: that it fails tells of this worker's death, whatever it is or is not at."""
        threading.Event().wait()

    def run(self, item: Item, attempt: int, following: Item | None = None) -> Receipt:
        """Does what is left of an item, unless another run is at it.

        What is read ahead of the item that will probably follow is kept as well, so that is claimed from then on.
        """
        self._device.settle(self._threads)  # a thread of its own runs this, and threads are counted by thread
        receipt = self._tried(item, attempt, following)
        malloc.hand_back()
        return replace(receipt, memory_bytes=self._device.most_held_bytes(self._stage.device))

    def _tried(self, item: Item, attempt: int, following: Item | None) -> Receipt:
        try:
            # What is attacked is scored by whoever attacked it, or gave it up; only attacking is claimed.
            holder = self._claim(item) if self._attacks and not self._is_complete(item) else None
            if holder is not None:
                return Receipt("held", holder)
            if following is not None:
                self._stage.prepare(following, partial(self._require_ours, following))
            return Receipt("done", made=self._stage.run(item, attempt=attempt))
        except Interrupted as told:
            return Receipt("stopped", str(told), self._stage.collected())
        except GnpError as error:
            at_fault = isinstance(error, StorageError) and not isinstance(error, (MissingError, IntegrityError))
            return Receipt("failed", str(error), self._stage.collected(), store_failed=at_fault)
        except Exception as error:  # a defect: listed with the item, and whole in the worker's log
            log.exception("item %s", item)
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            end = "broken" if self._device.is_broken_by(error) else "failed"
            return Receipt(end, reason, self._stage.collected())

    def _is_complete(self, item: Item) -> bool:
        """Whether nothing is left of an item: another run, which still holds its shard, may have done it."""
        found = self._ledger.committed(scopes(self._outline, item.source), shard=item.take.shard.name)
        return complete(self._outline, item, found)

    def _require_ours(self, item: Item) -> None:
        if self._is_complete(item) or self._claim(item) is not None:
            raise Interrupted(f"{item.name}: done, or another run is at it")

    def _claim(self, item: Item) -> str | None:
        return leases.claim(self._ledger.storage, place(self._plan_id, item), self._run)


def place(plan_id: str, item: Item) -> str:
    """What is claimed for an item: its shard, so that runs of different strides keep out of each other's way."""
    return f"{plan_id}/{item.source}/{item.take.shard.name}"
