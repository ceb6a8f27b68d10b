"""The loop that hands items to workers, and settles what comes back.

Ray places, isolates and watches the actors. Handing items out is a loop of our own, because what is asked of it (a
bounded number of tries an item, whoever's fault; a deadline; replacing a worker whose device is broken; draining a node
that is about to go; an end with a reason when nothing can start) is what Ray Data's pools cannot be told.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from pipeline.engine import cluster
from pipeline.engine.accounting import Account, Kind, log_item
from pipeline.engine.claimed import Held
from pipeline.engine.cluster import gist
from pipeline.engine.worker import Receipt, Worker, place
from pipeline.errors import CapacityError, StorageError
from pipeline.ledger import Failure, Ledger, leases
from pipeline.ledger.progress import Made, Tally
from pipeline.plan.outline import Item, Prepared
from pipeline.plan.pools import Crew, Pools, Sizing
from pipeline.storage import Storage

log = logging.getLogger(__name__)

# An item is tried so often before it is listed as failed.
ATTEMPTS = 3
# So many workers of one kind in a row may fail to start.
_STARTS = 5
# How long workers are given to reach the end of a unit when the run is told to stop.
_GRACE_S = 20.0
# How often a worker is asked what it has made of its item so far; one whose items are shorter never is.
_ASK_S = 10.0
# How long that may take of one that has answered.
_ANSWER_S = 5.0
# How often nodes are looked at.
_NODES_S = 2.0
# A worker with nothing to do is kept so long: an item that failed, or that another run lets go, may yet come to it.
_IDLE_S = 5.0
# Of a node's custom resource, whose amount says nothing: any number of workers may be kept to it.
_PLACE = 0.0001
# So many items of a queue are gone through for one that may be handed to a node.
_LOOK_AHEAD = 100


@dataclass
class _Slot:
    """One actor, what it is at, and what it has begun to read for afterwards."""

    actor: Any
    future: Any
    since: float
    item: Item | None = None
    upcoming: Item | None = None
    attempt: int = 1
    made: Made = field(default_factory=Made)
    asked: Any = None
    heard: float = 0.0
    node: str = ""
    pulse: Any = None

    @property
    def starting(self) -> bool:
        return not self.node

    @property
    def idle(self) -> bool:
        return self.future is None


@dataclass
class _Pool:
    """The actors of one stage."""

    stage: Kind
    crew: Crew
    slots: list[_Slot] = field(default_factory=list)
    failed_starts: int = 0
    reason: str = ""
    without_since: float = field(default_factory=time.monotonic)
    not_before: float = 0.0


class Office:
    """Hands items to workers until each is done or given up."""

    def __init__(
        self, prepared: Prepared, plan_id: str, storage: Storage, sizing: Sizing, limits: Pools, *, items: int
    ) -> None:
        self.run = uuid.uuid4().hex[:12]
        self.plan_id = plan_id
        self.state = "running"
        self.items = items
        self.workers = sizing.generator.count
        self.account = Account(self.run)
        self.failed: dict[str, Failure] = {}
        self.started = time.monotonic()
        self._queues: dict[Kind, deque[Item]] = {"generator": deque(), "scorer": deque()}
        self._plan, self._storage, self._limits = ray.put(prepared.sealed), storage, limits
        self._generators, self._scorers = _Pool("generator", sizing.generator), _Pool("scorer", sizing.scorer)
        # A class of its own for each stage, by whose name a process is called; exporting one costs 40 ms.
        self._actors = {stage: ray.remote(type(stage.capitalize(), (Worker,), {})) for stage in self._queues}
        self._held = Held(prepared.outline, plan_id, Ledger(storage), self.run)
        self._failed_on: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._stopping = False
        self._tries: Counter[tuple[str, str]] = Counter()
        self._store_failures = 0
        self._read_when_one_died: set[str] = set()
        self._draining: set[str] = set()
        self._alive: set[str] = set()
        self._nodes_seen = 0.0

    def tally(self) -> Tally:
        """How the run stands."""
        pools = self._generators, self._scorers
        at_work = {pool.stage: sum(slot.item is not None for slot in pool.slots) for pool in pools}
        left = sum(map(self._waiting, pools)) + len(self._held) + sum(at_work.values())
        return self.account.tally(
            items=self.items, items_left=left, workers=at_work, seconds=time.monotonic() - self.started
        )

    def work(self, items: list[Item], stop: threading.Event) -> None:
        """Hands items out, collects receipts, and replaces workers, until nothing is left or the run is to stop.

        Raises:
            CapacityError: No worker of a kind could start.
            StorageError: The store keeps failing.
        """
        self._queues["generator"].extend(items)
        pools = self._generators, self._scorers
        while not stop.is_set() and (self._held or any(map(self._waiting, pools)) or self._busy()):
            self._look_at_nodes()
            self._take_what_is_free()
            for pool in pools:
                self._release(pool)
                self._start(pool)
                self._hand_out(pool)
            self._collect()
        if stop.is_set():
            self._stop()

    def close(self) -> None:
        """Ends every worker."""
        for pool in (self._generators, self._scorers):
            for slot in list(pool.slots):
                if slot.item is not None:
                    self._close_item(pool, slot, "stopped", "the run ended")
                self._drop(pool, slot)

    def _busy(self) -> list[_Slot]:
        return [slot for pool in (self._generators, self._scorers) for slot in pool.slots if slot.item is not None]

    def _waiting(self, pool: _Pool) -> int:
        """How many items no worker of a pool is at."""
        return len(self._queues[pool.stage]) + sum(slot.upcoming is not None for slot in pool.slots)

    def _wanted(self, pool: _Pool) -> int:
        """How many workers of a pool there is work for."""
        wanted = self._waiting(pool) + sum(slot.item is not None for slot in pool.slots)
        if pool.stage == "scorer" and any(not slot.starting for slot in self._generators.slots):
            # While generators are at work, so that loading the targets does not wait for them; but never before one
            # is up, whose place an idle scorer might have taken.
            wanted = max(wanted, self._waiting(self._generators) + len(self._busy()))
        return min(pool.crew.count, wanted)

    def _release(self, pool: _Pool) -> None:
        """Lets workers go that nothing is left for: at once if the other pool waits for room.

        Else after a while: another run may wait for it.
        """
        other = self._scorers if pool is self._generators else self._generators
        in_the_way = any(slot.starting for slot in other.slots)
        idle_since = time.monotonic() - _IDLE_S
        free = [
            slot
            for slot in pool.slots
            if slot.item is None and (slot.starting or in_the_way or slot.since < idle_since)
        ]
        free.sort(key=lambda slot: (not slot.starting, slot.upcoming is not None))
        for slot in free[: max(0, len(pool.slots) - self._wanted(pool))]:
            self._drop(pool, slot)

    def _start(self, pool: _Pool) -> None:
        """Fills a pool up to its size, as far as there is work for it."""
        now, crew, wanted = time.monotonic(), pool.crew, self._wanted(pool)
        if not wanted or any(not slot.starting for slot in pool.slots):
            pool.without_since = now
        elif pool.failed_starts >= _STARTS or now - pool.without_since > 60 * self._limits.start_minutes:
            raise CapacityError(
                f"no {pool.stage} could start, in {pool.failed_starts} tries and "
                f"{(now - pool.without_since) / 60:.1f} minutes: {pool.reason or 'the cluster has no room for it'}"
            )
        elif self._busy():  # the other pool is getting on, and will make room when it is done
            pool.without_since = now
        if now < pool.not_before:
            return
        for _ in range(wanted - len(pool.slots)):
            actor = (
                self._actors[pool.stage]
                .options(
                    num_cpus=crew.cpus,
                    num_gpus=crew.gpus,
                    resources={crew.resource: _PLACE} if crew.resource else None,
                    max_restarts=0,
                    max_task_retries=0,
                    max_concurrency=3,
                )
                .remote(pool.stage, self._plan, self.plan_id, self._storage.url, crew.threads, self.run)
            )
            pool.slots.append(_Slot(actor, actor.ready.remote(), now))

    def _hand_out(self, pool: _Pool) -> None:
        for slot in pool.slots:
            if not slot.idle or slot.node in self._draining:
                continue
            item, slot.upcoming = slot.upcoming or self._next(pool, slot.node), None
            if item is not None:
                slot.item, slot.since, slot.upcoming = item, time.monotonic(), self._following(pool, item)
                slot.attempt, slot.heard = self._tries[pool.stage, item.name] + 1, slot.since
                slot.future = slot.actor.run.remote(item, slot.attempt, slot.upcoming)

    def _following(self, pool: _Pool, item: Item) -> Item | None:
        """What a generator begins to read beside an item, if anything.

        What has failed is read and run alone, for it may be what kills workers; what is of the same shard from another
        source waits until that shard's originals stand; and workers without an item come first.
        """
        queue, idle = self._queues[pool.stage], sum(slot.idle for slot in pool.slots)  # with the one that asks
        if pool is not self._generators or len(queue) < max(idle, 1) or self._is_suspect(pool, item):
            return None
        following = queue[0]
        same_images = following.take.shard.name == item.take.shard.name and following.source != item.source
        return None if same_images or self._is_suspect(pool, following) else queue.popleft()

    def _is_suspect(self, pool: _Pool, item: Item) -> bool:
        return bool(self._tries[pool.stage, item.name]) or item.name in self._read_when_one_died

    def _next(self, pool: _Pool, node: str) -> Item | None:
        """The next item for a worker; one that failed on its node waits for another node, where the pool has one.

        Else a single node whose disk is full or whose device is broken would use up every item's tries.
        """
        queue, nodes = self._queues[pool.stage], {slot.node for slot in pool.slots if not slot.starting}
        for _ in range(min(len(queue), _LOOK_AHEAD)):
            failed_on = self._failed_on.get((pool.stage, queue[0].name), set())
            if node not in failed_on or failed_on >= nodes:
                return queue.popleft()
            queue.rotate(-1)
        if not queue:  # what others have begun to read is better begun again than waited for
            for slot in pool.slots:
                if slot.upcoming is not None:
                    item, slot.upcoming = slot.upcoming, None
                    return item
        return None

    def _take_what_is_free(self) -> None:
        """Has an item that another run was at worked on, once that run is done with it."""
        try:
            item = self._held.freed()
        except StorageError as error:
            self._store_failed(str(error))
            return
        if item is not None:
            self._queues["generator"].append(item)

    def _collect(self) -> None:
        """Waits a moment for receipts, and settles what came and what is overdue."""
        slots = [(pool, slot) for pool in (self._generators, self._scorers) for slot in pool.slots]
        self._ask(slots)
        waiting = {slot.pulse if slot.idle else slot.future: (pool, slot) for pool, slot in slots}
        if not waiting:
            time.sleep(0.2)
            return
        ready, rest = ray.wait(list(waiting), num_returns=1, timeout=0.5)
        if ready and rest:  # as many workers of one pace end at once: a look at all of them for each would add up
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for future in ready:
            pool, slot = waiting[future]
            if slot.idle:  # it died with nothing in hand
                self._drop(pool, slot)
                continue
            try:
                answer = ray.get(future)
            except ray.exceptions.RayError as error:
                self._worker_died(pool, slot, error)
            else:
                self._answered(pool, slot, answer)
        limit = 60 * self._limits.item_minutes
        for pool, slot in slots:
            if slot.item is not None and time.monotonic() - slot.since > limit:
                reason = f"took longer than item_minutes = {self._limits.item_minutes:g}"
                self._close_item(pool, slot, "overdue", reason)
                item = self._drop(pool, slot)
                assert item is not None
                self._try_again(pool, item, reason, node=slot.node)

    def _ask(self, slots: list[tuple[_Pool, _Slot]]) -> None:
        """Has workers say from time to time what they have made, and takes in what was said; waits for none."""
        now = time.monotonic()
        for _, slot in slots:
            if slot.item is not None and slot.asked is None and now - slot.heard > _ASK_S:
                slot.asked = slot.actor.collected.remote()
        asked = {slot.asked: (pool, slot) for pool, slot in slots if slot.asked is not None}
        said = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
        for future in said:
            self._hear(*asked[future])

    def _hear(self, pool: _Pool, slot: _Slot) -> None:
        """Takes in what a worker was asked for; of one that has died since, nothing."""
        asked, slot.asked, slot.heard = slot.asked, None, time.monotonic()
        with contextlib.suppress(ray.exceptions.RayError):
            made, memory_bytes = ray.get(asked, timeout=_ANSWER_S)
            slot.made += made
            self.account.add(pool.stage, made)
            self.account.holds(pool.stage, slot.node, memory_bytes)

    def _close_item(self, pool: _Pool, slot: _Slot, end: str, reason: str = "") -> None:
        """Writes the log's line of an item that a worker is done with, however it ended."""
        assert slot.item is not None
        log_item(
            pool.stage,
            slot.item,
            run=self.run,
            end=end,
            reason=reason,
            seconds=time.monotonic() - slot.since,
            made=slot.made,
            attempt=slot.attempt,
            node=slot.node,
        )
        slot.made = Made()

    def _answered(self, pool: _Pool, slot: _Slot, answer: Any) -> None:
        if slot.item is None:  # it has started
            slot.node, slot.pulse, slot.future, pool.failed_starts = answer, slot.actor.live.remote(), None, 0
            slot.since = time.monotonic()
            return
        receipt: Receipt = answer
        if slot.asked is not None:
            self._hear(pool, slot)
        self.account.add(pool.stage, receipt.made)
        self.account.holds(pool.stage, slot.node, receipt.memory_bytes)
        slot.made += receipt.made
        self._close_item(pool, slot, receipt.end, receipt.reason)
        item, slot.item, slot.future, slot.since = slot.item, None, None, time.monotonic()
        if receipt.end == "done":
            self._store_failures = 0
            if pool is self._generators:
                self._queues["scorer"].append(item)
        elif receipt.end == "held":
            self._held.add(item)
        elif receipt.end == "stopped":
            self._queues[pool.stage].appendleft(item)
            self._drop(pool, slot)
        else:
            if receipt.end == "broken":
                self._drop(pool, slot)
            if receipt.store_failed:
                self._store_failed(receipt.reason)
            self._try_again(pool, item, receipt.reason, node=slot.node, store_failed=receipt.store_failed)

    def _worker_died(self, pool: _Pool, slot: _Slot, error: ray.exceptions.RayError) -> None:
        if slot.upcoming is not None:
            self._read_when_one_died.add(slot.upcoming.name)
        reason = gist(error)
        if slot.item is not None:
            self._close_item(pool, slot, "died", reason)
        item = self._drop(pool, slot)
        if item is None:
            if time.monotonic() >= pool.not_before:  # those that were started together count as one try
                pool.failed_starts += 1
                pool.not_before = time.monotonic() + min(2.0**pool.failed_starts, 30.0)
            pool.reason = reason
            log.warning("a %s did not start: %s", pool.stage, reason)
            return
        self._look_at_nodes(now=True)
        if slot.node in self._alive:
            self._try_again(pool, item, f"its worker died: {reason}", node=slot.node, deadly=True)
        else:  # the machine is gone: no fault of the item's
            log.warning("a node is gone; %s goes back into the queue", item.name)
            self._queues[pool.stage].appendleft(item)

    def _store_failed(self, reason: str) -> None:
        """Counts a failure that the store is to blame for.

        Raises:
            StorageError: It keeps failing, and nothing was done between.
        """
        self._store_failures += 1
        if self._store_failures > 2 * (self._generators.crew.count + self._scorers.crew.count) + 4:
            raise StorageError(f"the store keeps failing: {reason}")

    def _try_again(
        self, pool: _Pool, item: Item, reason: str, *, node: str, store_failed: bool = False, deadly: bool = False
    ) -> None:
        """Puts an item back, or lists it as failed; what was attacked of it is scored, unless it kills workers."""
        key = (pool.stage, item.name)
        self._tries[key] += 1
        self._failed_on[key].add(node)
        self.account.try_failed(pool.stage, "store" if store_failed else "worker" if deadly else "item")
        log.warning("try %d of %d: %s: %s", self._tries[key], ATTEMPTS, item.name, reason)
        if self._tries[key] < ATTEMPTS or self._stopping:
            self._queues[pool.stage].append(item)
            return
        failure = Failure(
            plan=self.plan_id,
            source=item.source,
            shard=item.take.shard.name,
            offset=item.offset,
            stride=item.stride,
            version=item.take.shard.version,
            item=item.name,
            reason=reason,
            tries=ATTEMPTS,
            run=self.run,
            store_failed=store_failed,
        )
        if self.failed.setdefault(item.name, failure) is failure:
            self.account.gave_up()
        try:
            Ledger(self._storage).fail(failure)
            leases.release(self._storage, place(self.plan_id, item), self.run)
        except StorageError as error:
            self._store_failed(str(error))
        if pool is self._generators and not deadly:
            self._queues["scorer"].append(item)

    def _look_at_nodes(self, *, now: bool = False) -> None:
        """Learns which nodes are alive, and tells workers on those that are about to go to stop at the next unit."""
        if not now and time.monotonic() - self._nodes_seen < _NODES_S:
            return
        self._nodes_seen = time.monotonic()
        self._alive = cluster.alive()
        draining = cluster.draining()
        for pool in (self._generators, self._scorers):
            for slot in [slot for slot in pool.slots if slot.node in draining]:
                if slot.item is None:
                    self._drop(pool, slot)
                elif slot.node not in self._draining:
                    slot.actor.stop.remote()
        self._draining = draining

    def _stop(self) -> None:
        """Lets every worker reach the end of its unit, for a while."""
        self._stopping = True
        until = time.monotonic() + _GRACE_S
        for slot in self._busy():
            slot.actor.stop.remote()
        while self._busy() and time.monotonic() < until:
            self._collect()

    def _drop(self, pool: _Pool, slot: _Slot) -> Item | None:
        """Ends a worker; returns what it had in hand."""
        if slot in pool.slots:
            pool.slots.remove(slot)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(slot.actor, no_restart=True)
        if slot.upcoming is not None:
            self._queues[pool.stage].appendleft(slot.upcoming)
        item, slot.item, slot.upcoming = slot.item, None, None
        return item
