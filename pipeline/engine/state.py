"""What the scheduler knows: the queue and the workers of each stage, and how often each item was tried.

Plain data and its transitions: no Ray, no clock, no store. `decisions` reads it, `Scheduler` changes it. A worker:

    PENDING ──placed──▶ STARTING ──started──▶ IDLE ──assigned──▶ BUSY
                                               ▲                  │
                                               └─────finished─────┘

From any state it may be removed: it died, or is not needed.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from pipeline.ledger.progress import StageTotals
from pipeline.plan.outline import Item
from pipeline.plan.pools import WorkerShape

StageName = Literal["generator", "scorer"]


class WorkerState(Enum):
    """A worker's state; the module's drawing has the transitions."""

    PENDING = "pending"
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(eq=False)
class WorkerRecord:
    """A worker as the scheduler knows it.

    Attributes:
        stage: The stage that it works for.
        since: When it entered its state, by `time.monotonic`.
        state: Its state.
        node: Id of the node that it runs on; empty while it waits for a place on one.
        item: The item that it works on, while it is busy.
        prefetch: The item whose shard it fetches meanwhile, which it will probably be assigned next.
        attempt: Which try of its item this is, from 1.
        totals: What it has added to the store for its item, as far as it has reported.
        handed_over: Of a generator: how many of the item's committed units scoring began with while it works.
        is_early: Of a scorer: its item is still being attacked; it scores what is committed so far.
    """

    stage: StageName
    since: float
    state: WorkerState = WorkerState.PENDING
    node: str = ""
    item: Item | None = None
    prefetch: Item | None = None
    attempt: int = 1
    totals: StageTotals = field(default_factory=StageTotals)
    handed_over: int = 0
    is_early: bool = False

    @property
    def has_started(self) -> bool:
        """Whether it is up."""
        return self.state in (WorkerState.IDLE, WorkerState.BUSY)

    def placed(self, node: str, now: float) -> None:
        """Its process runs, and loads what it needs."""
        assert self.state is WorkerState.PENDING
        self.state, self.node, self.since = WorkerState.STARTING, node, now

    def started(self, now: float) -> None:
        """It is ready, and waits for an item."""
        assert self.state is WorkerState.STARTING
        self.state, self.since = WorkerState.IDLE, now

    def assigned(self, item: Item, prefetch: Item | None, *, attempt: int, now: float, is_early: bool = False) -> None:
        """It works on an item."""
        assert self.state is WorkerState.IDLE
        self.state, self.since = WorkerState.BUSY, now
        self.item, self.prefetch, self.attempt, self.totals = item, prefetch, attempt, StageTotals()
        self.handed_over, self.is_early = 0, is_early

    def finished(self, now: float) -> Item:
        """It returned its item, done or not; `prefetch` stays with it."""
        assert self.state is WorkerState.BUSY
        assert self.item is not None
        item, self.item = self.item, None
        self.state, self.since = WorkerState.IDLE, now
        return item


@dataclass
class Pool:
    """The workers of one stage, and the items that wait for them.

    Attributes:
        stage: The stage.
        shape: How many workers there may be, and what each is given.
        without_worker_since: Since when it has needed a worker and had none that has started.
        workers: Its workers, in any state.
        queue: Items that wait for one.
        failed_starts: How many starts in a row have failed.
        start_error: Why the last one did.
        start_not_before: No worker is started before this time.
        behind_since: Since when it has fallen behind, by `decisions.has_fallen_behind`; None: it keeps up.
    """

    stage: StageName
    shape: WorkerShape
    without_worker_since: float
    workers: list[WorkerRecord] = field(default_factory=list)
    queue: deque[Item] = field(default_factory=deque)
    failed_starts: int = 0
    start_error: str = ""
    start_not_before: float = 0.0
    behind_since: float | None = None

    def in_state(self, state: WorkerState) -> list[WorkerRecord]:
        """Its workers in one state."""
        return [worker for worker in self.workers if worker.state is state]

    @property
    def has_started_worker(self) -> bool:
        """Whether at least one worker is up."""
        return any(worker.has_started for worker in self.workers)

    @property
    def items(self) -> list[Item]:
        """The items that wait or are worked on."""
        in_hand = (item for worker in self.workers for item in (worker.item, worker.prefetch))
        return [*self.queue, *(item for item in in_hand if item is not None)]

    @property
    def waiting(self) -> int:
        """Number of items that no worker works on."""
        return len(self.queue) + sum(worker.prefetch is not None for worker in self.workers)

    def take(self, item: Item) -> None:
        """Removes an item from where it waits: as some worker's prefetch, or in the queue."""
        for worker in self.workers:
            if worker.prefetch == item:
                worker.prefetch = None
                return
        self.queue.remove(item)

    def remove(self, worker: WorkerRecord) -> Item | None:
        """Removes a worker and returns the item that it worked on; its prefetch is the next in the queue."""
        if worker in self.workers:
            self.workers.remove(worker)
        if worker.prefetch is not None:
            self.queue.appendleft(worker.prefetch)
        item = worker.item
        worker.item = worker.prefetch = None
        return item


@dataclass
class SchedulerState:
    """Everything that scheduling decisions depend on.

    Attributes:
        generators: Workers that attack.
        scorers: Workers that score.
        tries: Failed tries by (stage, item name).
        early_failures: Failed tries of scoring what is committed of an item that is still attacked, by item name.
        failed_on: The nodes that an item failed on, by (stage, item name).
        suspects: Names of items that were being prefetched when a worker died, and may be the reason.
        draining: Ids of nodes that Ray is about to take away.
        store_failures: Failures of the store since an item was last done.
    """

    generators: Pool
    scorers: Pool
    tries: Counter[tuple[StageName, str]] = field(default_factory=Counter)
    early_failures: Counter[str] = field(default_factory=Counter)
    failed_on: dict[tuple[StageName, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    suspects: set[str] = field(default_factory=set)
    draining: set[str] = field(default_factory=set)
    store_failures: int = 0

    @property
    def pools(self) -> Sequence[Pool]:
        """Both pools, generators first."""
        return self.generators, self.scorers

    def pool(self, stage: StageName) -> Pool:
        """The pool of a stage."""
        return self.generators if stage == "generator" else self.scorers

    @property
    def workers(self) -> list[WorkerRecord]:
        """Every worker of both pools."""
        return [*self.generators.workers, *self.scorers.workers]

    @property
    def busy(self) -> list[WorkerRecord]:
        """Every worker that works on an item."""
        return [worker for worker in self.workers if worker.state is WorkerState.BUSY]

    def count_failed_try(self, stage: StageName, item: Item, node: str) -> int:
        """Records a failed try of an item on a node; returns the number of its failed tries."""
        key = stage, item.name
        self.tries[key] += 1
        self.failed_on[key].add(node)
        return self.tries[key]
