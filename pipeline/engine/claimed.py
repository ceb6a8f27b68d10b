"""Items that another run is at: left alone until it is done with them, has given them up, or is gone."""

import time
from collections import deque

from pipeline.engine.worker import place
from pipeline.ledger import Ledger, leases
from pipeline.plan.outline import Item, Outline, complete, scopes

# How long one is left alone before it is looked at again.
_PAUSE_S = 5.0


class Held:
    """The items of a plan that a run has found to be another's.

    Looking at one costs a few requests and no worker: a run that only waits keeps no place on the cluster from those
    that it waits for.

    Args:
        outline: What they are of.
        plan_id: Its id.
        ledger: Where.
        run: Who waits for them.
    """

    def __init__(self, outline: Outline, plan_id: str, ledger: Ledger, run: str) -> None:
        self._outline, self._plan_id, self._ledger, self._run = outline, plan_id, ledger, run
        self._items: deque[tuple[float, Item]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item) -> None:
        """Takes one in."""
        self._items.append((time.monotonic() + _PAUSE_S, item))

    def freed(self) -> Item | None:
        """Looks at the one that has waited the longest; returns it if it can be taken, and forgets it if it is done.

        Raises:
            StorageError: The store failed; the item is still among them.
        """
        if not self._items or self._items[0][0] > time.monotonic():
            return None
        _, item = self._items[0]
        shard = item.take.shard.name
        done = complete(self._outline, item, self._ledger.committed(scopes(self._outline, item.source), shard=shard))
        held = not done and leases.holder(self._ledger.storage, place(self._plan_id, item), self._run) is not None
        self._items.popleft()
        if held:
            self.add(item)
        return None if done or held else item
