"""Items that another run has claimed: left alone until that run is done with them, gives them up, or dies."""

import time
from collections import deque

from pipeline.engine.worker import claim_path, is_done
from pipeline.ledger import Ledger, leases
from pipeline.plan.outline import Item, Outline

# How long an item is left alone before it is looked up again.
_PAUSE_S = 5.0


class ClaimedItems:
    """The items of a plan that turned out to be claimed by another run.

    Looking one up costs a few requests and no worker: a run that only waits takes no place on the cluster from the run
    that it waits for.

    Args:
        outline: The plan of the items.
        plan_id: Its id.
        ledger: Where its results are committed.
        run: Id of the run that waits.
    """

    def __init__(self, outline: Outline, plan_id: str, ledger: Ledger, run: str) -> None:
        self._outline, self._plan_id, self._ledger, self._run = outline, plan_id, ledger, run
        self._items: deque[tuple[float, Item]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item) -> None:
        """Adds an item that another run has claimed."""
        self._items.append((time.monotonic() + _PAUSE_S, item))

    def next_free(self) -> Item | None:
        """Looks up the item that has waited longest; returns it if nobody holds it any more and it is not complete.

        Raises:
            StorageError: The store failed; the item is still among the claimed ones.
        """
        if not self._items or self._items[0][0] > time.monotonic():
            return None
        _, item = self._items[0]
        if is_done(self._outline, item, self._ledger):
            self._items.popleft()
            return None
        holder = leases.other_holder(self._ledger.storage, claim_path(self._plan_id, item), self._run)
        self._items.popleft()
        if holder is not None:
            self.add(item)
            return None
        return item
