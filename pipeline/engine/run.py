"""Runs a plan: finds what the store lacks, has it made, and looks again, until each item is done or was given up.

What is done is read off the store before and after, never off Ray: whatever a worker, a node or Ray itself loses is
found missing, and tried again.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import ray.exceptions

from pipeline.child_process import ChildProcess
from pipeline.engine.cluster import connect, summary
from pipeline.engine.decisions import ATTEMPTS
from pipeline.engine.heartbeat import heartbeats, progress_reports
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.signals import stopping_on_signals
from pipeline.errors import CapacityError
from pipeline.ledger import CommittedParts, Failure, Ledger, leases
from pipeline.ledger.progress import Progress, StageTotals, Tally
from pipeline.plan.outline import Item, Outline, PickledPlan, all_scopes, incomplete_items, is_complete, pending_items
from pipeline.plan.pools import Pools, shared_nodes_notice, size_pools
from pipeline.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        items: Number of items that had work to do; 0 where everything was committed before.
        failed: Name → reason, for every item that is still incomplete.
        listed: Failures of earlier runs of this plan, which were not tried again.
        incomplete: Number of the plan's items that still lack something, whichever run they failed in.
        made: What this run's generators added: adversarial parts and their images; images quarantined.
        scored: What this run's scorers added.
        usable: Whether any image of this data could be used, in this run or an earlier one, or there was none to use.
        stopped: Whether the run was stopped before its end.
        seconds: Wall-clock time.
    """

    items: int
    failed: dict[str, str]
    listed: tuple[Failure, ...]
    incomplete: int
    made: StageTotals
    scored: StageTotals
    usable: bool
    stopped: bool
    seconds: float


def run_plan(
    plan: PickledPlan,
    store: str,
    *,
    pools: Pools,
    child: ChildProcess | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress, Tally], None] = lambda *_: None,
    on_notice: Callable[[str], None] = log.info,
) -> Outcome:
    """Makes what the store lacks of a plan.

    Args:
        plan: The plan, pickled for the workers, and its outline.
        store: URL of the store; every worker opens it from its own environment.
        pools: How many workers, and what each is given.
        child: A process that tries the models before workers start, and is ended then: the one that resolved the plan,
            if there is one, has torch loaded.
        address: A Ray cluster; by default the one of this process, or of RAY_ADDRESS, or else a local one.
        retry_failed: Also try again what earlier runs of this plan gave up, and images that were quarantined.
        stop: Set it to end the run early. SIGTERM and Ctrl-C do, where this is called in the main thread.
        on_progress: Called every few seconds, from another thread.
        on_notice: Called with a line that the user should see: other runs of the same plan, and the like.

    Raises:
        CapacityError: The cluster cannot hold the pools, or no worker could start in time.
        StorageError: The store cannot be written, does not honour put-if-absent, or keeps failing.
        WeightsError: A model's stored weights are damaged.
    """
    started = time.monotonic()
    outline = plan.outline
    storage = Storage(store, create=True)
    storage.check_put_if_absent()
    ledger = Ledger(storage)
    plan_id = ledger.record_plan(outline.record)
    scheduler = None
    with child or ChildProcess() as child:
        if retry_failed:
            retry = partial(_retry_quarantined, plan, storage.url)
            notices = child.call(retry, task="trying quarantined images again", timeout_minutes=pools.item_minutes)
            for line in notices:
                on_notice(line)
        shards = {selection.shard.name for selection in outline.selections}
        committed = ledger.list_committed(all_scopes(outline), shards=shards)
        if not pending_items(outline, committed):  # what the index has as finished is looked up before that is said
            committed = ledger.list_committed(all_scopes(outline))
        listed = _update_failures(outline, ledger, plan_id, committed, retry=retry_failed)
        work = _WorkDone(committed)
        if _lacking(outline, committed, listed):
            scheduler = _start(plan, ledger, plan_id, committed, listed, pools, child, address, on_notice)
    if scheduler is not None:
        reports = progress_reports(plan, ledger, scheduler, on_progress)
        stop = stop or threading.Event()
        with heartbeats(scheduler, storage), reports, stopping_on_signals(stop):
            _wait_for_exclusive_run(storage, scheduler.run, stop, on_notice)
            for line in _notices_of_other_runs(storage, plan_id, scheduler.run):
                on_notice(line)
            work = _work(scheduler, outline, ledger, stop)
            scheduler.state = "stopped" if work.stopped else "done"
    return Outcome(
        items=work.items,
        failed=work.failed,
        listed=listed,
        incomplete=len(pending_items(outline, work.committed)),
        made=work.made,
        scored=work.scored,
        usable=not outline.selections or _has_usable_image(outline, ledger),
        stopped=work.stopped,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _WorkDone:
    """Results of the work, and the parts committed at its end; the defaults are for a plan that lacks nothing."""

    committed: CommittedParts
    items: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    made: StageTotals = field(default_factory=StageTotals)
    scored: StageTotals = field(default_factory=StageTotals)
    stopped: bool = False


def _start(
    plan: PickledPlan,
    ledger: Ledger,
    plan_id: str,
    committed: CommittedParts,
    listed: Sequence[Failure],
    pools: Pools,
    child: ChildProcess,
    address: str | None,
    on_notice: Callable[[str], None],
) -> Scheduler:
    """Loads every model once, joins the cluster, and returns a scheduler for as many workers as it holds."""
    outline, storage = plan.outline, ledger.storage
    preflight = partial(_preflight, plan.pickled, storage.url)
    scoring_share = child.begin(preflight, task="loading the models", timeout_minutes=pools.start_minutes)
    nodes = connect(address)  # meanwhile
    sizing = size_pools(pools, nodes, scoring=scoring_share())
    log.info("%s", sizing)
    if notice := shared_nodes_notice(nodes):
        on_notice(notice)
    items = _lacking(outline, committed, listed, workers=sizing.generator.count, part_counts=plan.part_counts)
    return Scheduler(plan, plan_id, storage, sizing, pools, items)


def _work(scheduler: Scheduler, outline: Outline, ledger: Ledger, stop: threading.Event) -> _WorkDone:
    """Has items worked on until the store shows each of them done, or it was given up.

    Raises:
        CapacityError: The Ray cluster went away, or no worker could start.
    """
    items = scheduler.items
    try:
        for _ in range(ATTEMPTS):
            scheduler.work([item for item in items if item.name not in scheduler.failed], stop)
            committed = ledger.list_committed(all_scopes(outline))
            items = incomplete_items(outline, items, committed)
            if stop.is_set() or scheduler.failed.keys() >= {item.name for item in items}:
                break
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise CapacityError(f"the Ray cluster went away: {summary(error)}") from error
    finally:
        scheduler.close()
    stopped = stop.is_set() and bool(items)
    lost = {} if stopped else {item.name: "its results were lost again and again" for item in items}
    given_up = {item.name: scheduler.failed[item.name].reason for item in items if item.name in scheduler.failed}
    totals = scheduler.account.totals
    failed = {**lost, **given_up}
    return _WorkDone(committed, len(scheduler.items), failed, totals["generator"], totals["scorer"], stopped)


def _lacking(
    outline: Outline,
    committed: CommittedParts,
    listed: Sequence[Failure],
    *,
    workers: int = 1,
    part_counts: Mapping[str, int] | None = None,
) -> list[Item]:
    """The items that lack something, without those that earlier runs gave up."""
    items = pending_items(outline, committed, workers=workers, part_counts=part_counts)
    return [item for item in items if not _is_listed(outline, item, listed, committed)]


def _update_failures(
    outline: Outline, ledger: Ledger, plan_id: str, committed: CommittedParts, *, retry: bool
) -> tuple[Failure, ...]:
    """Removes from the store the failures of earlier runs that are void or to be retried; returns the others.

    A failure is void if the item is complete by now, if its shard has changed or is not part of the run, or if the
    store was to blame.
    """
    failures = ledger.list_failures(plan_id)
    selections = {selection.shard.name: selection for selection in outline.selections}

    def holds(failure: Failure) -> bool:
        selection = selections.get(failure.shard)
        if retry or failure.store_failed or selection is None or selection.shard.version != failure.version:
            return False
        return not is_complete(outline, Item(selection, failure.source, failure.offset, failure.stride), committed)

    ledger.remove_failures(failure for failure in failures if not holds(failure))
    return tuple(filter(holds, failures))


def _is_listed(outline: Outline, item: Item, listed: Sequence[Failure], committed: CommittedParts) -> bool:
    """Whether earlier runs gave up each part of an item that lacks something; these may have had other strides."""
    shard = item.selection.shard.name
    failures = [failure for failure in listed if (failure.source, failure.shard) == (item.source, shard)]
    if not failures:
        return False
    # While the number of parts is unknown, strides repeat themselves after their least common multiple.
    repeat = math.lcm(item.stride, *(failure.stride for failure in failures))
    count = committed.part_count(shard) or item.offset + repeat
    return all(
        any(part % failure.stride == failure.offset for failure in failures)
        for part in range(item.offset, count, item.stride)
        if not is_complete(outline, replace(item, offset=part, stride=count), committed)
    )


def _preflight(pickled: bytes, store: str) -> float:
    from pipeline.plan.preflight import preflight  # in the child process: it imports torch

    return preflight(pickled, Storage(store))


def _retry_quarantined(plan: PickledPlan, store: str) -> list[str]:
    from pipeline.plan import quarantine  # in the child process: it imports torch

    return quarantine.retry_quarantined(plan, Ledger(Storage(store)))


def _wait_for_exclusive_run(
    storage: Storage, run: str, stop: threading.Event, on_notice: Callable[[str], None]
) -> None:
    """Waits while somebody revokes or removes objects that this run could be reading."""
    noticed = False
    while (other := leases.find_exclusive_run(storage, run)) is not None and not stop.wait(2.0):
        if not noticed:
            on_notice(f"waiting for {other.id} on {other.record['host']}, which is removing or revoking objects")
        noticed = True


def _has_usable_image(outline: Outline, ledger: Ledger) -> bool:
    """Whether any committed part of originals holds an image; as a rule one marker is read."""
    return any(ledger.read_marker(unit).fact("n_ok") for unit in ledger.list_units(f"original/{outline.dataset}"))


def _notices_of_other_runs(storage: Storage, plan_id: str, run: str) -> Iterator[str]:
    """A line about each other live run of the same plan."""
    for other in leases.mark_dead_and_yield_live(storage, run):
        record = other.record
        if record["plan"] == plan_id:
            yield (
                f"run {other.id} on {record['host']} (process {record['pid']}) works on the same plan: "
                f"{record['items_left']} of {record['items']} items left, {record['images']} images attacked in "
                f"{record['seconds']:.0f} s; this run takes what that one has not claimed"
            )
