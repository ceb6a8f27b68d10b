"""What the scheduler does next: pure functions of its state and the time; no Ray.

They answer which workers to start or release, which item a worker is assigned, and when to give up: an item, starting
workers, or a store that keeps failing.
"""

from dataclasses import dataclass

from pipeline.engine.state import Pool, SchedulerState, WorkerRecord, WorkerState
from pipeline.errors import MissingError, RecipeError, SampleError, ShardError, WeightsError
from pipeline.plan.outline import Item

# An item that failed this many times is listed as failed,
ATTEMPTS = 3
# and at once where it failed for one of these: another try would read the same bytes.
_LASTING = (RecipeError, SampleError, ShardError, WeightsError)
# A run ends after this many failed starts of one stage's workers in a row.
START_TRIES = 5
# An idle worker is kept this long: an item that failed, or that another run gives up, may still come to it.
IDLE_S = 5.0
# Scoring has fallen behind where more than this many items wait for each scorer; another is started once it has been so
# for this long, since a scorer takes seconds to start.
_BEHIND, _BEHIND_S = 2, 10.0
# The longest pause between starts that fail.
MAX_BACKOFF_S = 30.0


@dataclass(frozen=True)
class Assignment:
    """An item for an idle worker, and the item whose shard it fetches meanwhile (None: nothing)."""

    worker: WorkerRecord
    item: Item
    prefetch: Item | None


def workers_wanted(state: SchedulerState, pool: Pool, now: float) -> int:
    """How many workers of a pool there is work for."""
    at_hand = min(pool.shape.count, pool.waiting + len(pool.in_state(WorkerState.BUSY)))
    if pool is state.generators:
        return at_hand
    # Scorers start beside generators, so that loading the targets delays nothing; but no more of them than generators
    # have places on the cluster while one waits for its own, which an idle scorer might take.
    placed = sum(bool(worker.node) for worker in state.generators.workers)
    at_first = pool.shape.count if pool.shape.at_first is None else pool.shape.at_first
    enough = max(len(pool.workers), at_first)
    more = pool.behind_since is not None and now - pool.behind_since > _BEHIND_S
    wanted = min(at_hand, enough + more)
    if placed:
        wanted = max(wanted, min(at_first, state.generators.waiting + len(state.busy)))
    may_take_place = placed and state.generators.in_state(WorkerState.PENDING) and not pool.shape.resource
    return min(wanted, placed) if may_take_place else wanted


def has_fallen_behind(state: SchedulerState) -> bool:
    """Whether more items wait to be scored than the scorers will soon have done; any, once all are attacked."""
    attacking = state.generators.waiting + len(state.generators.in_state(WorkerState.BUSY))
    return state.scorers.waiting > (_BEHIND * len(state.scorers.workers) if attacking else 0)


def to_release(state: SchedulerState, pool: Pool, now: float) -> list[WorkerRecord]:
    """The workers of a pool that nothing is left for.

    They go at once where the other pool waits for their place, else after `IDLE_S`, so that another run finds room.
    """
    other = state.scorers if pool is state.generators else state.generators
    place_needed = bool(other.in_state(WorkerState.PENDING))
    free = [
        worker
        for worker in pool.workers
        if not worker.has_started
        or (worker.state is WorkerState.IDLE and (place_needed or worker.since < now - IDLE_S))
    ]
    order = list(WorkerState)  # what has cost least goes first
    free.sort(key=lambda worker: (order.index(worker.state), worker.prefetch is not None, -worker.since))
    return free[: max(0, len(pool.workers) - workers_wanted(state, pool, now))]


def to_start(state: SchedulerState, pool: Pool, now: float) -> int:
    """How many workers of a pool to start now."""
    return 0 if now < pool.start_not_before else max(0, workers_wanted(state, pool, now) - len(pool.workers))


def lacks_worker(state: SchedulerState, pool: Pool, now: float) -> bool:
    """Whether there is work for a pool of which no worker is up."""
    return workers_wanted(state, pool, now) > 0 and not pool.has_started_worker


def start_failure(pool: Pool, now: float, *, limit_s: float) -> str | None:
    """Why the run ends, where a pool that lacks a worker could start none in time; else None."""
    waited_s = now - pool.without_worker_since
    if pool.failed_starts < START_TRIES and waited_s <= limit_s:
        return None
    reason = pool.start_error or "the cluster has no room for it"
    return f"no {pool.stage} could start, in {pool.failed_starts} tries and {waited_s / 60:.1f} minutes: {reason}"


def backoff_s(failed_starts: int) -> float:
    """The pause after this many failed starts in a row."""
    return min(2.0**failed_starts, MAX_BACKOFF_S)


def next_assignment(state: SchedulerState, pool: Pool) -> Assignment | None:
    """The next item for the first idle worker that there is one for; None where there is nothing to assign."""
    for worker in pool.in_state(WorkerState.IDLE):
        if worker.node in state.draining:
            continue
        position = None if worker.prefetch else _next_position(state, pool, worker.node)
        item = worker.prefetch if position is None else pool.queue[position]
        if item is None and not pool.queue:
            # What another worker only prefetches is better begun again by an idle one than waited for.
            item = next((other.prefetch for other in pool.workers if other.prefetch is not None), None)
        if item is not None:
            return Assignment(worker, item, _next_prefetch(state, pool, item, position))
    return None


def next_early_scoring(state: SchedulerState) -> tuple[WorkerRecord, WorkerRecord] | None:
    """A scorer with nothing else to do, and the generator of whose item it scores what is committed so far."""
    scored = {worker.item for worker in state.scorers.in_state(WorkerState.BUSY)}
    generators = [
        worker
        for worker in state.generators.in_state(WorkerState.BUSY)
        if worker.item is not None
        and worker.totals.units > worker.handed_over
        and worker.item not in scored
        and state.early_failures[worker.item.name] < ATTEMPTS
    ]
    scorer = next((each for each in state.scorers.in_state(WorkerState.IDLE) if each.node not in state.draining), None)
    if scorer is None or not generators:
        return None
    return scorer, max(generators, key=lambda worker: worker.totals.units - worker.handed_over)


def _next_position(state: SchedulerState, pool: Pool, node: str) -> int | None:
    """The position in the queue of the first item that a worker on a node may be given.

    An item that failed on that node waits for another node, where the pool has one it has not failed on: a single node
    whose disk is full or whose device is broken would use up every item's tries.
    """
    nodes = {worker.node for worker in pool.workers if worker.has_started}
    in_hand = {worker.item for worker in pool.workers}  # what is scored early is queued when its generator is done
    for position, item in enumerate(pool.queue):
        if item in in_hand:
            continue
        failed_on = state.failed_on.get((pool.stage, item.name), set())
        if node not in failed_on or failed_on >= nodes:
            return position
    return None


def _next_prefetch(state: SchedulerState, pool: Pool, item: Item, position: int | None) -> Item | None:
    """The item whose shard a generator fetches while it works on another, if any.

    An item that has failed is fetched and run alone, for it may be what kills workers. An item of the same shard from
    another source waits until that shard's originals are committed. Idle workers, this one counted, come first.

    Args:
        state: The schedule.
        pool: The worker's pool.
        item: The item that the worker is assigned.
        position: Its position in the queue; None if it is not taken from there.
    """
    if pool is not state.generators or _is_suspect(state, pool, item):
        return None
    still_queued = len(pool.queue) - (position is not None)
    if still_queued < max(1, len(pool.in_state(WorkerState.IDLE))):
        return None
    candidate = pool.queue[0 if position is None else (position + 1) % len(pool.queue)]
    same_images = candidate.selection.shard.name == item.selection.shard.name and candidate.source != item.source
    return None if same_images or _is_suspect(state, pool, candidate) else candidate


def _is_suspect(state: SchedulerState, pool: Pool, item: Item) -> bool:
    return bool(state.tries[pool.stage, item.name]) or item.name in state.suspects


def is_lasting(error: Exception, item: Item) -> bool:
    """Whether an item's error will be the same at every try: its shard is missing or damaged, or does not fit.

    Whatever may have been the store's, the device's or the process's fault is not.
    """
    return isinstance(error, _LASTING) or (isinstance(error, MissingError) and item.selection.shard.url in str(error))


def gives_up(tries: int, *, lasting: bool) -> bool:
    """Whether an item is listed as failed, after so many failed tries of which the last failed for a lasting reason."""
    return lasting or tries >= ATTEMPTS


def overdue(state: SchedulerState, now: float, *, limit_s: float) -> list[WorkerRecord]:
    """The workers that have worked on their item for too long."""
    return [worker for worker in state.busy if now - worker.since > limit_s]


def store_keeps_failing(state: SchedulerState) -> bool:
    """Whether the store failed so often, with nothing done between, that waiting for it makes no sense."""
    return state.store_failures > 2 * sum(pool.shape.count for pool in state.pools) + 4
