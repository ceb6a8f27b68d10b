"""The loop that assigns items to workers: it has `Actors` carry out what `decisions` decides, and takes in the results.

Ray places, isolates and watches the actors. The loop is ours, because Ray Data's pools cannot do what is needed here: a
bounded number of tries per item, whatever failed; a deadline; replacing a worker whose device is broken; draining a
node that is about to go; an end with a reason when nothing can start.
"""

import logging
import threading
import time
import uuid
from collections.abc import Sequence

from pipeline.engine import cluster, decisions
from pipeline.engine.accounting import FailureCause, RunAccount, log_item
from pipeline.engine.actors import Actors, Died, Placed, Started
from pipeline.engine.claimed import ClaimedItems
from pipeline.engine.decisions import ATTEMPTS, Assignment
from pipeline.engine.state import Pool, SchedulerState, WorkerRecord, WorkerState
from pipeline.engine.worker import ItemResult, claim_path
from pipeline.errors import CapacityError, StorageError
from pipeline.ledger import Failure, Ledger, leases
from pipeline.ledger.progress import StageTotals, Tally
from pipeline.plan.outline import Item, PickledPlan
from pipeline.plan.pools import Pools, PoolSizes
from pipeline.storage import Storage

log = logging.getLogger(__name__)

# How long workers may take to reach the end of a unit when the run is stopped.
_GRACE_S = 20.0
# How often the list of nodes is read.
_NODES_EVERY_S = 2.0
# How long one turn of the loop waits for results.
_WAIT_S = 0.5


class Scheduler:
    """Assigns items to workers until each item is done or given up.

    Attributes:
        run: The run's id.
        plan_id: The plan's id.
        state: `running`, until whoever started it sets how it ended.
        items: The items that had work to do when the run began.
        account: Counts of what the run did.
        failed: Item name → its failure, for items that were given up.
    """

    def __init__(
        self,
        plan: PickledPlan,
        plan_id: str,
        storage: Storage,
        sizing: PoolSizes,
        limits: Pools,
        items: Sequence[Item] = (),
    ) -> None:
        now = time.monotonic()
        self.run = uuid.uuid4().hex[:12]
        self.plan_id = plan_id
        self.state = "running"
        self.items = items
        self.account = RunAccount(self.run)
        self.failed: dict[str, Failure] = {}
        self._started_at = now
        self._storage, self._limits = storage, limits
        self._schedule = SchedulerState(
            generators=Pool("generator", sizing.generator, now), scorers=Pool("scorer", sizing.scorer, now)
        )
        self._actors = Actors(plan, plan_id, storage.url, self.run)
        self._claimed = ClaimedItems(plan.outline, plan_id, Ledger(storage), self.run)
        self._stopping = False
        self._live_nodes: set[str] = set()
        self._nodes_read_at = 0.0

    def tally(self) -> Tally:
        """Counts of items, workers and results so far."""
        busy = {pool.stage: len(pool.in_state(WorkerState.BUSY)) for pool in self._schedule.pools}
        waiting = sum(pool.waiting for pool in self._schedule.pools)
        early = sum(worker.is_early for worker in self._schedule.busy)
        return self.account.tally(
            items=len(self.items),
            items_left=waiting + len(self._claimed) + sum(busy.values()) - early,
            workers=busy,
            seconds=time.monotonic() - self._started_at,
        )

    def work(self, items: list[Item], stop: threading.Event) -> None:
        """Assigns items, takes in results and replaces workers, until nothing is left or `stop` is set.

        Raises:
            CapacityError: No worker of a stage could start.
            StorageError: The store keeps failing.
        """
        self._schedule.generators.queue.extend(items)
        while not stop.is_set() and self._has_work():
            self._read_nodes()
            self._requeue_unclaimed_item()
            self._note_whether_scoring_falls_behind()
            for pool in self._schedule.pools:
                self._resize(pool)
                while (assignment := decisions.next_assignment(self._schedule, pool)) is not None:
                    self._assign(pool, assignment)
            while (pair := decisions.next_early_scoring(self._schedule)) is not None:
                self._score_early(*pair)
            self._collect()
        if stop.is_set():
            self._stop()

    def close(self) -> None:
        """Ends every worker."""
        for worker in self._schedule.workers:
            if worker.item is not None:
                self._log_item(worker, "stopped", "the run ended")
            self._remove(worker)

    def _has_work(self) -> bool:
        return bool(self._claimed or self._schedule.busy or any(pool.waiting for pool in self._schedule.pools))

    # Workers

    def _resize(self, pool: Pool) -> None:
        """Releases the workers that are not needed, and starts those that are.

        Raises:
            CapacityError: None could start in time.
        """
        now = time.monotonic()
        for worker in decisions.to_release(self._schedule, pool, now):
            self._remove(worker)
        if decisions.lacks_worker(self._schedule, pool, now):
            failure = decisions.start_failure(pool, now, limit_s=60 * self._limits.start_minutes)
            if failure is not None:
                raise CapacityError(failure)
            if self._schedule.busy:  # the other pool makes progress, and room when it is done
                pool.without_worker_since = now
        else:
            pool.without_worker_since = now
        for _ in range(decisions.to_start(self._schedule, pool, now)):
            worker = WorkerRecord(pool.stage, now)
            pool.workers.append(worker)
            self._actors.start(worker, pool.shape)

    def _remove(self, worker: WorkerRecord) -> Item | None:
        """Ends a worker; returns the item that it worked on."""
        self._actors.kill(worker)
        return self._schedule.pool(worker.stage).remove(worker)

    def _read_nodes(self, *, now: bool = False) -> None:
        """Reads which nodes are live, and stops workers on draining nodes at the end of their unit."""
        if not now and time.monotonic() - self._nodes_read_at < _NODES_EVERY_S:
            return
        self._nodes_read_at = time.monotonic()
        self._live_nodes = cluster.live_nodes()
        draining = cluster.draining_nodes()
        for worker in [worker for worker in self._schedule.workers if worker.node in draining]:
            if worker.item is None:
                self._remove(worker)
            elif worker.node not in self._schedule.draining:
                self._actors.stop(worker)
        self._schedule.draining = draining

    def _stop(self) -> None:
        """Lets busy workers reach the end of their unit, for at most `_GRACE_S`."""
        self._stopping = True
        until = time.monotonic() + _GRACE_S
        for worker in self._schedule.busy:
            self._actors.stop(worker)
        while self._schedule.busy and time.monotonic() < until:
            self._collect()

    # Items

    def _assign(self, pool: Pool, assignment: Assignment) -> None:
        worker, item, prefetch = assignment.worker, assignment.item, assignment.prefetch
        pool.take(item)
        if prefetch is not None:
            pool.take(prefetch)
        attempt = self._schedule.tries[pool.stage, item.name] + 1
        worker.assigned(item, prefetch, attempt=attempt, now=time.monotonic())
        self._actors.run(worker)

    def _score_early(self, scorer: WorkerRecord, generator: WorkerRecord) -> None:
        """Has a scorer score what a generator has committed of its item so far; the item is done later."""
        assert generator.item is not None
        generator.handed_over = generator.totals.units
        attempt = self._schedule.tries["scorer", generator.item.name] + 1
        scorer.assigned(generator.item, None, attempt=attempt, now=time.monotonic(), is_early=True)
        self._actors.run(scorer)

    def _note_whether_scoring_falls_behind(self) -> None:
        scorers = self._schedule.scorers
        if not decisions.has_fallen_behind(self._schedule):
            scorers.behind_since = None
        elif scorers.behind_since is None:
            scorers.behind_since = time.monotonic()

    def _requeue_unclaimed_item(self) -> None:
        """Queues an item that another run had claimed and has left undone."""
        try:
            item = self._claimed.next_free()
        except StorageError as error:
            self._store_failed(str(error))
            return
        if item is not None:
            self._schedule.generators.queue.append(item)

    def _collect(self) -> None:
        """Waits a moment for results; takes in those that came, and ends workers that are overdue."""
        for worker, totals, memory_bytes in self._actors.totals():
            self._add_totals(worker, totals, memory_bytes)
        for worker, event in self._actors.wait(_WAIT_S):
            if isinstance(event, Placed):
                worker.placed(event.node, time.monotonic())
            elif isinstance(event, Started):
                worker.started(time.monotonic())
                self._schedule.pool(worker.stage).failed_starts = 0
            elif isinstance(event, Died):
                self._worker_died(worker, event.reason)
            else:
                self._item_returned(worker, event)
        self._end_overdue_workers()

    def _add_totals(self, worker: WorkerRecord, totals: StageTotals, memory_bytes: int) -> None:
        worker.totals += totals
        self.account.add(worker.stage, totals)
        self.account.record_memory(worker.stage, worker.node, memory_bytes)

    def _item_returned(self, worker: WorkerRecord, result: ItemResult) -> None:
        for asked_before in self._actors.totals_of(worker):
            self._add_totals(*asked_before)
        self._add_totals(worker, result.totals, result.memory_bytes)
        self._log_item(worker, result.end, result.reason)
        item = worker.finished(time.monotonic())
        if result.end == "done":
            self._schedule.store_failures = 0
            if worker.stage == "generator":
                self._schedule.scorers.queue.append(item)
        elif result.end == "held":
            self._claimed.add(item)
        elif result.end == "stopped":
            if not worker.is_early:
                self._schedule.pool(worker.stage).queue.appendleft(item)
            self._remove(worker)
        else:
            if result.end == "broken":
                self._remove(worker)
            if result.store_failed:
                self._store_failed(result.reason)
            cause: FailureCause = "store" if result.store_failed else "item"
            self._retry_or_give_up(worker, item, result.reason, cause=cause, lasting=result.lasting)

    def _worker_died(self, worker: WorkerRecord, reason: str) -> None:
        if worker.state is WorkerState.IDLE:  # no item and no start has failed
            self._remove(worker)
            return
        if worker.prefetch is not None:
            self._schedule.suspects.add(worker.prefetch.name)
        if worker.item is not None:
            self._log_item(worker, "died", reason)
        item = self._remove(worker)
        if item is None:
            self._start_failed(self._schedule.pool(worker.stage), reason)
            return
        self._read_nodes(now=True)
        if worker.node in self._live_nodes:
            self._retry_or_give_up(worker, item, f"its worker died: {reason}", cause="worker")
        elif not worker.is_early:  # the machine is gone: not the item's fault
            log.warning("a node is gone; %s goes back into the queue", item.name)
            self._schedule.pool(worker.stage).queue.appendleft(item)

    def _start_failed(self, pool: Pool, reason: str) -> None:
        now = time.monotonic()
        if now >= pool.start_not_before:  # workers that were started together count as one try
            pool.failed_starts += 1
            pool.start_not_before = now + decisions.backoff_s(pool.failed_starts)
        pool.start_error = reason
        log.warning("a %s did not start: %s", pool.stage, reason)

    def _end_overdue_workers(self) -> None:
        limit_s = 60 * self._limits.item_minutes
        for worker in decisions.overdue(self._schedule, time.monotonic(), limit_s=limit_s):
            reason = f"took longer than item_minutes = {self._limits.item_minutes:g}"
            self._log_item(worker, "overdue", reason)
            item = self._remove(worker)
            assert item is not None
            self._retry_or_give_up(worker, item, reason, cause="item")

    def _store_failed(self, reason: str) -> None:
        """Counts a failure that is the store's.

        Raises:
            StorageError: It keeps failing, and no item was done in between.
        """
        self._schedule.store_failures += 1
        if decisions.store_keeps_failing(self._schedule):
            raise StorageError(f"the store keeps failing: {reason}")

    def _retry_or_give_up(
        self, worker: WorkerRecord, item: Item, reason: str, *, cause: FailureCause, lasting: bool = False
    ) -> None:
        """Queues an item again, or lists it as failed; what was attacked of it is scored, unless it kills workers."""
        self.account.count_failed_try(worker.stage, cause)
        if worker.is_early:  # it is scored once more when it has been attacked
            self._schedule.early_failures[item.name] += 1
            log.warning("scoring %s while it is attacked: %s", item.name, reason)
            return
        tries = self._schedule.count_failed_try(worker.stage, item, worker.node)
        if not lasting:  # else the run's last lines say it
            log.warning("try %d of %d: %s: %s", tries, ATTEMPTS, item.name, reason)
        if not decisions.gives_up(tries, lasting=lasting) or self._stopping:
            self._schedule.pool(worker.stage).queue.append(item)
            return
        self._give_up(item, reason, tries, store_failed=cause == "store")
        if worker.stage == "generator" and cause != "worker":
            self._schedule.scorers.queue.append(item)

    def _give_up(self, item: Item, reason: str, tries: int, *, store_failed: bool) -> None:
        """Lists an item as failed, in the store too, and gives up its claim."""
        failure = Failure(
            plan=self.plan_id,
            source=item.source,
            shard=item.selection.shard.name,
            offset=item.offset,
            stride=item.stride,
            version=item.selection.shard.version,
            item=item.name,
            reason=reason,
            tries=tries,
            run=self.run,
            store_failed=store_failed,
        )
        if self.failed.setdefault(item.name, failure) is failure:
            self.account.count_failed_item()
        try:
            Ledger(self._storage).record_failure(failure)
            claim = claim_path(self.plan_id, item)
            if claim not in {claim_path(self.plan_id, other) for other in self._schedule.generators.items}:
                leases.release(self._storage, claim, self.run)
        except StorageError as error:
            self._store_failed(str(error))

    def _log_item(self, worker: WorkerRecord, end: str, reason: str = "") -> None:
        """Writes the log's line of the item that a worker has in hand, which ends here."""
        assert worker.item is not None
        log_item(
            worker.stage,
            worker.item,
            run=self.run,
            end=end,
            reason=reason,
            seconds=time.monotonic() - worker.since,
            totals=worker.totals,
            attempt=worker.attempt,
            node=worker.node,
            early=worker.is_early,
        )
