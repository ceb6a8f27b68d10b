"""A plan → what of it is missing → handed out, until the store shows each item done or it was given up."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import ray.exceptions

from pipeline.child_process import isolated
from pipeline.engine.cluster import connect, gist
from pipeline.engine.heartbeat import heart, signals_set, watch
from pipeline.engine.scheduler import ATTEMPTS, Office
from pipeline.errors import CapacityError
from pipeline.ledger import Committed, Failure, Ledger, leases
from pipeline.ledger.progress import Made, Progress, Tally
from pipeline.plan.outline import Item, Outline, Prepared, all_scopes, complete, pending
from pipeline.plan.pools import Pools, half_apart, size
from pipeline.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        items: How many items had work to do; 0 where everything was committed before.
        failed: Name of every item that is still incomplete → the reason.
        listed: Failures of earlier runs of this plan that were not tried again.
        incomplete: How many items of the plan something is still missing from, whoever's they were.
        made: What this run added: adversarial parts and their images; images quarantined.
        usable: Whether any image of this data could be used, in this run or an earlier one, or there was none to use.
        stopped: Whether it was told to stop before the end.
        seconds: Wall-clock time.
    """

    items: int
    failed: dict[str, str]
    listed: tuple[Failure, ...]
    incomplete: int
    made: Made
    usable: bool
    stopped: bool
    seconds: float


def run(
    prepared: Prepared,
    store: str,
    *,
    pools: Pools,
    address: str | None = None,
    retry_failed: bool = False,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress, Tally], None] = lambda *_: None,
    on_notice: Callable[[str], None] = log.info,
) -> Outcome:
    """Makes what is missing of a plan.

    Args:
        prepared: What is to be made.
        store: URL of the store; every worker opens it from its own environment.
        pools: How many workers, and what each is given.
        address: A Ray cluster; by default the one of this process, or of RAY_ADDRESS, or else a local one.
        retry_failed: Try again what earlier runs of this plan gave up, and images that could not be used.
        stop: Set it to end the run early. SIGTERM and Ctrl-C do, where this is called in the main thread.
        on_progress: Called every few seconds, from another thread.
        on_notice: Called with a line that whoever runs it should know: other runs at the same plan, and the like.

    Raises:
        CapacityError: The cluster cannot hold the pools, or no worker could start in time.
        StorageError: The store cannot be written, does not honour put-if-absent, or keeps failing.
        WeightsError: A model's stored weights are damaged.
    """
    started, stop, outline = time.monotonic(), stop or threading.Event(), prepared.outline
    storage = Storage(store, create=True)
    storage.probe()
    ledger = Ledger(storage)
    plan_id = ledger.record_plan(outline.described)
    if retry_failed:
        retry = partial(_retry_quarantined, prepared, storage.url)
        for line in isolated(retry, what="trying quarantined images again", minutes=pools.item_minutes):
            on_notice(line)
    committed = ledger.committed(all_scopes(outline))
    listed = _failures(outline, ledger, plan_id, committed, retry=retry_failed)
    office, failed, stopped = None, dict[str, str](), False
    if _left(outline, committed, listed):
        preflight = partial(_preflight, prepared.sealed, storage.url)
        scoring = isolated(preflight, what="loading the models", minutes=pools.start_minutes)
        nodes = connect(address)
        sizing = size(pools, nodes, scoring=scoring)
        log.info("%s", sizing)
        if shared := half_apart(nodes):
            on_notice(shared)
        items = _left(outline, committed, listed, workers=sizing.generator.count)
        office = Office(prepared, plan_id, storage, sizing, pools, items=len(items))
        with heart(office, storage), watch(outline.described, ledger, office, on_progress), signals_set(stop):
            _wait_for_whoever_is_alone(storage, office.run, stop, on_notice)
            for line in _others(storage, plan_id, office.run):
                on_notice(line)
            committed = _reconcile(office, outline, ledger, listed, items, stop)
            remaining = _left(outline, committed, listed, workers=sizing.generator.count)
            stopped = stop.is_set() and bool(remaining)
            office.state = "stopped" if stopped else "done"
        failed = {} if stopped else {item.name: "its results were lost again and again" for item in remaining}
        failed |= {item.name: office.failed[item.name].reason for item in remaining if item.name in office.failed}
    return Outcome(
        items=office.items if office else 0,
        failed=failed,
        listed=listed,
        incomplete=len(pending(outline, committed)),
        made=office.account.made["generator"] if office else Made(),
        usable=not outline.takes or _usable(outline, ledger),
        stopped=stopped,
        seconds=time.monotonic() - started,
    )


def _left(outline: Outline, committed: Committed, listed: Sequence[Failure], *, workers: int = 1) -> list[Item]:
    """The items that something is missing from, but for what earlier runs gave up."""
    return [item for item in pending(outline, committed, workers=workers) if not _passed_over(item, listed, committed)]


def _reconcile(
    office: Office,
    outline: Outline,
    ledger: Ledger,
    listed: Sequence[Failure],
    items: list[Item],
    stop: threading.Event,
) -> Committed:
    """Has items worked on until the store shows each done, or it was given up; returns what then stands."""
    try:
        for _ in range(ATTEMPTS):
            office.work([item for item in items if item.name not in office.failed], stop)
            committed = ledger.committed(all_scopes(outline))
            items = _left(outline, committed, listed, workers=office.workers)
            if stop.is_set() or office.failed.keys() >= {item.name for item in items}:
                break
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise CapacityError(f"the Ray cluster went away: {gist(error)}") from error
    finally:
        office.close()
    return committed


def _failures(
    outline: Outline, ledger: Ledger, plan_id: str, committed: Committed, *, retry: bool
) -> tuple[Failure, ...]:
    """What earlier runs gave up and is not to be tried again; what is to be, or is done, is taken off the list."""
    listed, takes = ledger.failures(plan_id), {take.shard.name: take for take in outline.takes}

    def stands(failure: Failure) -> bool:
        take = takes.get(failure.shard)
        if retry or failure.store_failed or take is None or take.shard.version != failure.version:
            return False
        return not complete(outline, Item(take, failure.source, failure.offset, failure.stride), committed)

    ledger.forgive(failure for failure in listed if not stands(failure))
    return tuple(filter(stands, listed))


def _passed_over(item: Item, listed: Sequence[Failure], committed: Committed) -> bool:
    """Whether each part of an item is one that an earlier run gave up; that run may have had other strides."""
    shard = item.take.shard.name
    own = [failure for failure in listed if (failure.source, failure.shard) == (item.source, shard)]
    # While the number of parts is unknown, strides repeat themselves after their common multiple.
    count = committed.count(shard) or item.offset + math.lcm(item.stride, *(failure.stride for failure in own))
    return bool(own) and all(
        any(part % failure.stride == failure.offset for failure in own)
        for part in range(item.offset, count, item.stride)
    )


def _preflight(sealed: bytes, store: str) -> float:
    from pipeline.plan.preflight import preflight  # here, in a process of its own: it takes torch

    return preflight(sealed, Storage(store))


def _retry_quarantined(prepared: Prepared, store: str) -> list[str]:
    from pipeline.plan import quarantine  # as above

    return quarantine.retry(prepared, Ledger(Storage(store)))


def _wait_for_whoever_is_alone(
    storage: Storage, own: str, stop: threading.Event, on_notice: Callable[[str], None]
) -> None:
    """Waits while somebody takes back or removes what this run could be reading."""
    told = False
    while (other := leases.one_alone(storage, own)) is not None and not stop.wait(2.0):
        if not told:
            on_notice(
                f"waiting for {other.id} on {other.record['host']}, which takes back or removes what is of no use"
            )
        told = True


def _usable(outline: Outline, ledger: Ledger) -> bool:
    """Whether any original is committed that holds an image; one marker is read as a rule."""
    return any(ledger.marker(unit).fact("n_ok") for unit in ledger.units(f"original/{outline.dataset}"))


def _others(storage: Storage, plan_id: str, own: str) -> Iterator[str]:
    """A line about each live run of the same plan; those that died on this machine are buried first."""
    for other in leases.seen(storage, now=storage.stat(f"runs/{own}.json").modified):
        if other.id == own or other.record["plan"] != plan_id or not other.live or leases.bury(storage, other):
            continue
        said = other.record
        yield (
            f"run {other.id} on {said['host']} (process {said['pid']}) is at the same work: {said['items_left']} of "
            f"{said['items']} items left, {said['images']} images attacked in {said['seconds']:.0f} s; this run takes "
            "what that one has not claimed"
        )
