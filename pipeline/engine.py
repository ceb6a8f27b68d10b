"""The only file that imports Ray: two pools of actors, what they are handed, and what becomes of it.

    items ──▶ generators (a device and a source model each) ──▶ scorers (a device and all targets each) ──▶ receipts

Only receipts travel between the stages; images travel through the object store. What is done is read off the store
before and after, never off Ray: whatever a worker, a node or Ray itself loses is found missing and tried again.

Ray places, isolates and watches the actors. Handing items out is a loop of our own, because what is asked of it (a
bounded number of tries an item, whoever's fault; a deadline; replacing a worker whose device is broken; draining a node
that is about to go; an end with a reason when nothing can start) is what Ray Data's pools cannot be told.
"""

import contextlib
import logging
import math
import os
import signal
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pipeline import quarantine, runs, weights
from pipeline.errors import CapacityError, GnpError, IntegrityError, Interrupted, MissingError, StorageError
from pipeline.ledger import Committed, Failure, Ledger
from pipeline.plan import Item, Plan, all_scopes, complete, pending, require_unchanged, scopes
from pipeline.pools import Node, Pools, Sizing, size
from pipeline.progress import Progress, progress
from pipeline.stages import Generator, Made, Scorer
from pipeline.storage import Storage

# Before Ray is imported: no usage reports, no warning about its own change of default for CUDA_VISIBLE_DEVICES, and of
# its C++ side's messages on our terminal only the one that says so.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
import ray
import ray.exceptions
from ray._private.state import state as ray_state  # the only way to hear of nodes that are about to be preempted

log = logging.getLogger(__name__)

# An item is tried so often before it is listed as failed.
ATTEMPTS = 3
# So many workers of one kind in a row may fail to start.
_STARTS = 5
# How long workers are given to reach the end of a unit when the run is told to stop.
_GRACE_S = 20.0
# How long an item that another run is at is left alone before it is looked at again.
_HELD_S = 5.0
# How often nodes are looked at.
_NODES_S = 2.0

Stage = type[Generator] | type[Scorer]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        items: How many items had work to do; 0 where everything was committed before.
        failed: Name of every item that is still incomplete → the reason.
        listed: Failures of earlier runs of this plan that were not tried again.
        incomplete: How many items of the plan something is still missing from, whoever's they were.
        made: What this run added: adversarial parts and their images; images quarantined.
        usable: Whether any image of this data could be used, in this run or an earlier one.
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
    plan: Plan,
    store: str,
    *,
    pools: Pools,
    address: str | None = None,
    retry_failed: bool = False,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_notice: Callable[[str], None] = log.info,
) -> Outcome:
    """Makes what is missing of a plan.

    Args:
        plan: What is to be made.
        store: URL of the store; every worker opens it from its own environment.
        pools: How many workers, and what each is given.
        address: A Ray cluster; by default the one of this process, or of RAY_ADDRESS, or else a local one.
        retry_failed: Try again what earlier runs of this plan gave up, and images that could not be used.
        stop: Set it to end the run early. SIGTERM and Ctrl-C do, where this is called in the main thread.
        on_progress: Called every few seconds, from another thread.
        on_notice: Called with a line about other runs that are at the same plan.

    Raises:
        CapacityError: The cluster cannot hold the pools, or no worker could start in time.
        StorageError: The store cannot be written, does not honour put-if-absent, or keeps failing.
        RecipeError: A shard is not the one that the store's results were made from.
        WeightsError: A model's stored weights are damaged.
    """
    started, stop = time.monotonic(), stop or threading.Event()
    storage = Storage(store, create=True)
    storage.probe()
    ledger = Ledger(storage)
    require_unchanged(plan, ledger)
    plan_id = ledger.record_plan(plan.describe())
    if retry_failed:
        _retry_quarantined(plan, ledger, on_notice)
    committed = ledger.committed(all_scopes(plan))
    listed = _failures(plan, ledger, plan_id, committed, retry=retry_failed)
    office, failed, stopped = None, dict[str, str](), False
    if _left(plan, committed, listed):
        for model in {model.weights: model for model in (*plan.sources, *plan.targets)}.values():
            weights.load(model, storage, classes=plan.job.data.classes)  # what cannot be loaded fails here, by name
        sizing = size(pools, _connect(address))
        log.info("%s", sizing)
        items = _left(plan, committed, listed, workers=sizing.generators)
        office = _Office(replace(plan, takes=()), plan_id, storage, sizing, pools, items=len(items))
        with _Heart(office, storage), _Watch(plan, ledger, on_progress), _signals_set(stop):
            for line in _others(storage, plan_id, office.run):
                on_notice(line)
            committed = _reconcile(office, plan, ledger, listed, items, stop)
            remaining = _left(plan, committed, listed, workers=sizing.generators)
            stopped = stop.is_set() and bool(remaining)
            office.state = "stopped" if stopped else "done"
        failed = {} if stopped else {item.name: "its results were lost again and again" for item in remaining}
        failed |= {item.name: office.failed[item.name].reason for item in remaining if item.name in office.failed}
    return Outcome(
        items=office.items if office else 0,
        failed=failed,
        listed=listed,
        incomplete=len(pending(plan, committed)),
        made=office.made if office else Made(),
        usable=_usable(plan, ledger),
        stopped=stopped,
        seconds=time.monotonic() - started,
    )


def _left(plan: Plan, committed: Committed, listed: Sequence[Failure], *, workers: int = 1) -> list[Item]:
    """The items that something is missing from, but for what earlier runs gave up."""
    return [item for item in pending(plan, committed, workers=workers) if not _passed_over(item, listed, committed)]


def _reconcile(
    office: "_Office", plan: Plan, ledger: Ledger, listed: Sequence[Failure], items: list[Item], stop: threading.Event
) -> Committed:
    """Has items worked on until the store shows each done, or it was given up; returns what then stands."""
    try:
        for _ in range(ATTEMPTS):
            office.work([item for item in items if item.name not in office.failed], stop)
            committed = ledger.committed(all_scopes(plan))
            items = _left(plan, committed, listed, workers=office.workers)
            if stop.is_set() or office.failed.keys() >= {item.name for item in items}:
                break
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise CapacityError(f"the Ray cluster went away: {_gist(error)}") from error
    finally:
        office.close()
    return committed


def _failures(plan: Plan, ledger: Ledger, plan_id: str, committed: Committed, *, retry: bool) -> tuple[Failure, ...]:
    """What earlier runs gave up and is not to be tried again; what is to be, or is done, is taken off the list."""
    listed, takes = ledger.failures(plan_id), {take.shard.name: take for take in plan.takes}

    def stands(failure: Failure) -> bool:
        take = takes.get(failure.shard)
        if retry or take is None or take.shard.version != failure.version:
            return False
        return not complete(plan, Item(take, failure.source, failure.offset, failure.stride), committed)

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


def _retry_quarantined(plan: Plan, ledger: Ledger, on_notice: Callable[[str], None]) -> None:
    """Has quarantined images tried again, unless another run could be reading what that revokes."""
    for run in runs.seen(ledger.storage, now=ledger.storage.clock()):
        if run.live:
            on_notice(f"quarantined images are not tried again while run {run.id} on {run.record['host']} is at work")
            return
    for part in quarantine.reconsider(plan, ledger):
        on_notice(f"quarantined images of {part.shard}, part {part.index} of {part.count}, can be used now")


def _usable(plan: Plan, ledger: Ledger) -> bool:
    """Whether any original is committed that holds an image; one marker is read as a rule."""
    return any(ledger.marker(unit).fact("n_ok") for unit in ledger.units(f"original/{plan.dataset}"))


def _others(storage: Storage, plan_id: str, own: str) -> Iterator[str]:
    """A line about each live run of the same plan; those that died on this machine are buried first."""
    for other in runs.seen(storage, now=storage.stat(f"runs/{own}.json").modified):
        if other.id == own or other.record["plan"] != plan_id or not other.live or runs.bury(storage, other):
            continue
        said = other.record
        yield (
            f"run {other.id} on {said['host']} (process {said['pid']}) is at the same work: {said['items_left']} of "
            f"{said['items']} items left, {said['images']} images attacked in {said['seconds']:.0f} s; this run takes "
            "what that one has not claimed"
        )


@dataclass(frozen=True)
class Receipt:
    """What a worker says of an item that it was handed.

    Attributes:
        end: `done`; `held` by another run; `stopped` on request; `failed`; `broken`: failed, and so has the device.
        reason: Why it is not done, in one line.
        made: What was added to the store.
        store_failed: The store was at fault and not the item.
    """

    end: str
    reason: str = ""
    made: Made = field(default_factory=Made)
    store_failed: bool = False


class _Worker:
    """One actor: a stage; items in, receipts out. An item's failure is a receipt, never the actor's end."""

    def __init__(self, stage: Stage, plan: Plan, plan_id: str, store: str, threads: int, run: str) -> None:
        self._threads, self._plan, self._plan_id, self._run = threads, plan, plan_id, run
        _settle_arithmetic(threads)
        device = torch.device("cuda") if torch.cuda.is_available() and ray.get_gpu_ids() else torch.device("cpu")
        self._stopping = threading.Event()
        self._ledger = Ledger(Storage(store))
        self._stage = stage(plan, self._ledger, device, self._stopping.is_set)

    def ready(self) -> str:
        """The node that it runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def stop(self) -> None:
        """Ends the item in hand between two units; called beside `run`."""
        self._stopping.set()

    def run(self, item: Item, attempt: int) -> Receipt:
        _settle_arithmetic(self._threads)  # a thread of its own runs this, and threads are counted by thread
        self._stage.made = Made()
        try:
            holder = None if self._is_complete(item) else self._claim(item)
            if holder is not None:
                return Receipt("held", holder)
            return Receipt("done", made=self._stage.run(item, attempt=attempt))
        except Interrupted as told:
            return Receipt("stopped", str(told), self._stage.made)
        except GnpError as error:
            at_fault = isinstance(error, StorageError) and not isinstance(error, (MissingError, IntegrityError))
            return Receipt("failed", str(error), self._stage.made, store_failed=at_fault)
        except Exception as error:  # a defect: listed with the item, and whole in the worker's log
            log.exception("item %s", item)
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            return Receipt("broken" if _is_sticky(error) else "failed", reason, self._stage.made)

    def _is_complete(self, item: Item) -> bool:
        """Whether nothing is left of an item: another run, which still holds its shard, may have done it."""
        found = self._ledger.committed(scopes(self._plan, item.source), shard=item.take.shard.name)
        return complete(self._plan, item, found)

    def _claim(self, item: Item) -> str | None:
        return runs.claim(self._ledger.storage, _place(self._plan_id, item), self._run)


def _place(plan_id: str, item: Item) -> str:
    """What is claimed for an item: its shard, so that runs of different strides keep out of each other's way."""
    return f"{plan_id}/{item.source}/{item.take.shard.name}"


def _is_sticky(error: Exception) -> bool:
    """Whether every later call on this process's device will fail as well: such a process can only be replaced."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def _settle_arithmetic(threads: int) -> None:
    """Sets threads, full float32 and fixed algorithms.

    The literal penalty is a difference of gradients at points 2.6e-5 a pixel apart, which TF32's 10-bit mantissa cannot
    tell from each other; and a rerun must give the same bytes.
    """
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


@dataclass
class _Slot:
    """One actor, and what it is at."""

    actor: Any
    future: Any
    since: float
    item: Item | None = None
    node: str = ""

    @property
    def starting(self) -> bool:
        return not self.node

    @property
    def idle(self) -> bool:
        return self.future is None


@dataclass
class _Pool:
    """The actors of one stage."""

    stage: Stage
    size: int
    slots: list[_Slot] = field(default_factory=list)
    failed_starts: int = 0
    reason: str = ""
    without_since: float = field(default_factory=time.monotonic)
    not_before: float = 0.0


class _Office:
    """Hands items to workers until each is done or given up."""

    def __init__(
        self, plan: Plan, plan_id: str, storage: Storage, sizing: Sizing, limits: Pools, *, items: int
    ) -> None:
        self.run = uuid.uuid4().hex[:12]
        self.plan_id = plan_id
        self.state = "running"
        self.items = items
        self.workers = sizing.generators
        self.made = Made()
        self.failed: dict[str, Failure] = {}
        self.started = time.monotonic()
        self._plan, self._storage, self._sizing, self._limits = ray.put(plan), storage, sizing, limits
        self._generators, self._scorers = _Pool(Generator, sizing.generators), _Pool(Scorer, sizing.scorers)
        self._queues: dict[Stage, deque[Item]] = {Generator: deque(), Scorer: deque()}
        self._held: deque[tuple[float, Item]] = deque()
        self._tries: Counter[tuple[str, str]] = Counter()
        self._store_failures = 0
        self._draining: set[str] = set()
        self._alive: set[str] = set()
        self._nodes_seen = 0.0

    def counts(self) -> dict[str, Any]:
        """What the run says of itself while it goes on."""
        return {
            "items": self.items,
            "items_left": sum(map(len, self._queues.values())) + len(self._held) + len(self._busy()),
            "images": self.made.images,
            "failed": len(self.failed),
            "seconds": round(time.monotonic() - self.started, 1),
        }

    def work(self, items: list[Item], stop: threading.Event) -> None:
        """Hands items out, collects receipts, and replaces workers, until nothing is left or the run is to stop.

        Raises:
            CapacityError: No worker of a kind could start.
            StorageError: The store keeps failing.
        """
        self._queues[Generator].extend(items)
        while not stop.is_set() and (self._held or any(self._queues.values()) or self._busy()):
            self._look_at_nodes()
            for pool in (self._generators, self._scorers):
                self._start(pool)
                self._hand_out(pool)
            self._collect()
        if stop.is_set():
            self._stop()

    def close(self) -> None:
        """Ends every worker."""
        for pool in (self._generators, self._scorers):
            for slot in list(pool.slots):
                self._drop(pool, slot)

    def _busy(self) -> list[_Slot]:
        return [slot for pool in (self._generators, self._scorers) for slot in pool.slots if slot.item is not None]

    def _start(self, pool: _Pool) -> None:
        """Fills a pool up to its size, as far as there is work for it."""
        now, gpus = time.monotonic(), self._sizing.generator_gpus
        if pool.stage is Scorer:
            gpus = self._sizing.scorer_gpus
        wanted = len(self._queues[pool.stage]) + sum(slot.item is not None for slot in pool.slots)
        if pool.stage is Scorer:  # while generators are at work, so that loading the targets does not wait for them
            wanted = max(wanted, len(self._queues[Generator]) + len(self._busy()))
        if not wanted or any(not slot.starting for slot in pool.slots):
            pool.without_since = now
        elif now - pool.without_since > 60 * self._limits.start_minutes or pool.failed_starts >= _STARTS:
            raise CapacityError(
                f"no {pool.stage.__name__.lower()} could start, in {pool.failed_starts} tries and "
                f"{(now - pool.without_since) / 60:.1f} minutes: {pool.reason or 'the cluster has no room for it'}"
            )
        if now < pool.not_before:
            return
        for _ in range(min(pool.size, wanted) - len(pool.slots)):
            actor = (
                ray.remote(type(pool.stage.__name__, (_Worker,), {}))
                .options(
                    num_cpus=self._sizing.cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, max_concurrency=2
                )
                .remote(pool.stage, self._plan, self.plan_id, self._storage.url, self._sizing.threads, self.run)
            )
            pool.slots.append(_Slot(actor, actor.ready.remote(), now))

    def _hand_out(self, pool: _Pool) -> None:
        queue, now = self._queues[pool.stage], time.monotonic()
        while pool.stage is Generator and self._held and self._held[0][0] <= now:
            queue.append(self._held.popleft()[1])
        for slot in pool.slots:
            if slot.idle and queue and slot.node not in self._draining:
                slot.item, slot.since = queue.popleft(), now
                tries = self._tries[pool.stage.__name__, slot.item.name]
                slot.future = slot.actor.run.remote(slot.item, tries + 1)

    def _collect(self) -> None:
        """Waits a moment for receipts, and settles what came and what is overdue."""
        waiting = {s.future: (p, s) for p in (self._generators, self._scorers) for s in p.slots if not s.idle}
        if not waiting:
            time.sleep(0.2)
            return
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=0.5)
        for future in ready:
            pool, slot = waiting[future]
            try:
                answer = ray.get(future)
            except ray.exceptions.RayError as error:
                self._worker_died(pool, slot, error)
            else:
                self._answered(pool, slot, answer)
        limit = 60 * self._limits.item_minutes
        for pool, slot in waiting.values():
            if slot.item is not None and time.monotonic() - slot.since > limit:
                self._drop(pool, slot)
                self._try_again(pool, slot.item, f"took longer than item_minutes = {self._limits.item_minutes:g}")

    def _answered(self, pool: _Pool, slot: _Slot, answer: Any) -> None:
        item, slot.item, slot.future = slot.item, None, None
        if item is None:  # it has started
            slot.node, pool.failed_starts = answer, 0
            return
        receipt: Receipt = answer
        if pool is self._generators:
            self.made += receipt.made
        self._store_failures = self._store_failures + 1 if receipt.store_failed else 0
        if receipt.end == "done":
            if pool is self._generators:
                self._queues[Scorer].append(item)
        elif receipt.end == "held":
            self._held.append((time.monotonic() + _HELD_S, item))
        elif receipt.end == "stopped":
            self._queues[pool.stage].appendleft(item)
            self._drop(pool, slot)
        else:
            if receipt.end == "broken":
                self._drop(pool, slot)
            self._try_again(pool, item, receipt.reason, store_failed=receipt.store_failed)

    def _worker_died(self, pool: _Pool, slot: _Slot, error: ray.exceptions.RayError) -> None:
        item, reason = slot.item, _gist(error)
        self._drop(pool, slot)
        if item is None:
            pool.failed_starts += 1
            pool.reason = reason
            pool.not_before = time.monotonic() + min(2.0**pool.failed_starts, 30.0)
            log.warning("a %s did not start: %s", pool.stage.__name__.lower(), reason)
            return
        self._look_at_nodes(now=True)
        if slot.node in self._alive:
            self._try_again(pool, item, f"its worker died: {reason}", deadly=True)
        else:  # the machine is gone: no fault of the item's
            log.warning("a node is gone; %s goes back into the queue", item.name)
            self._queues[pool.stage].appendleft(item)

    def _try_again(
        self, pool: _Pool, item: Item, reason: str, *, store_failed: bool = False, deadly: bool = False
    ) -> None:
        """Puts an item back, or lists it as failed; what was attacked of it is scored, unless it kills workers."""
        if self._store_failures > 2 * (self._generators.size + self._scorers.size) + 4:
            raise StorageError(f"the store keeps failing: {reason}")
        key = (pool.stage.__name__, item.name)
        self._tries[key] += 1
        log.warning("try %d of %d: %s: %s", self._tries[key], ATTEMPTS, item.name, reason)
        if self._tries[key] < ATTEMPTS:
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
        )
        self.failed.setdefault(item.name, failure)
        if not store_failed:  # what the store was to blame for is tried again by the next run, unasked
            Ledger(self._storage).fail(failure)
            runs.release(self._storage, _place(self.plan_id, item), self.run)
        if pool is self._generators and not deadly:
            self._queues[Scorer].append(item)

    def _look_at_nodes(self, *, now: bool = False) -> None:
        """Learns which nodes are alive, and tells workers on those that are about to go to stop at the next unit."""
        if not now and time.monotonic() - self._nodes_seen < _NODES_S:
            return
        self._nodes_seen = time.monotonic()
        self._alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        draining = set(ray_state.get_draining_nodes())
        for pool in (self._generators, self._scorers):
            for slot in [slot for slot in pool.slots if slot.node in draining]:
                if slot.item is None:
                    self._drop(pool, slot)
                elif slot.node not in self._draining:
                    slot.actor.stop.remote()
        self._draining = draining

    def _stop(self) -> None:
        """Lets every worker reach the end of its unit, for a while."""
        until = time.monotonic() + _GRACE_S
        for slot in self._busy():
            slot.actor.stop.remote()
        while self._busy() and time.monotonic() < until:
            self._collect()

    def _drop(self, pool: _Pool, slot: _Slot) -> None:
        pool.slots.remove(slot)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(slot.actor, no_restart=True)


def _gist(error: BaseException) -> str:
    """The line of Ray's page that says what happened."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    telling = [line for line in lines if "Worker exit" in line or "OutOfMemory" in line]
    return (telling or lines[-1:] or [type(error).__name__])[0][:300]


def _connect(address: str | None) -> list[Node]:
    """Joins or starts Ray, and returns the live nodes.

    Raises:
        CapacityError: There is no Ray at the address.
    """
    if not ray.is_initialized():
        # Left to itself, Ray would join whatever cluster somebody has started on this machine. Jobs set RAY_ADDRESS.
        where = address or os.environ.get("RAY_ADDRESS") or "local"
        dashboard = False if where == "local" else None
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=where, include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
        except (ValueError, ConnectionError, RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CapacityError(f"no Ray at {where}: {reason}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own handler ends the process at once, with code 15
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=node.get("CPU", 0), gpus=node.get("GPU", 0)) for node in resources if node.get("CPU")]


@contextlib.contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """While entered, SIGTERM and Ctrl-C set `stop`; a second one ends the process as it otherwise would."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Heart:
    """While entered, says every few seconds that the run is alive, and at the end how it ended."""

    def __init__(self, office: _Office, storage: Storage) -> None:
        self._office, self._storage = office, storage
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _beat(self, state: str) -> None:
        office = self._office
        runs.beat(self._storage, office.run, plan=office.plan_id, state=state, counts=office.counts())

    def _run(self) -> None:
        while not self._stop.wait(runs.BEAT_S):
            try:
                self._beat("running")
            except Exception as error:  # the lease may run out; results stay right
                log.warning("heartbeat: %s", error)

    def __enter__(self) -> None:
        self._beat("running")
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(StorageError):
            self._beat("failed" if self._office.state == "running" else self._office.state)


class _Watch:
    """While entered, reports progress from the store, spending at most a twentieth of the time on listing it."""

    def __init__(self, plan: Plan, ledger: Ledger, report: Callable[[Progress], None]) -> None:
        self._plan, self._ledger, self._report = plan.describe(), ledger, report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _look(self) -> None:
        self._report(progress(self._plan, self._ledger))

    def _run(self) -> None:
        wait = 1.0
        while not self._stop.wait(wait):
            started = time.monotonic()
            try:
                self._look()
            except Exception as error:  # a look that fails must not end the run that it looks at
                log.warning("progress: %s", error)
            wait = max(1.0, 20 * (time.monotonic() - started))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(StorageError):
            self._look()
