"""The only file that imports Ray: two actor pools over Ray Data, retries and reconciliation.

    items ──▶ generators (a device and a source model each) ──▶ scorers (a device and all targets each) ──▶ receipts

Only receipts travel between the stages; images travel through the object store. What is done is read off the store
before and after, never off Ray: whatever a worker, a node or Ray itself loses is found missing and tried again.
"""

import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipeline.errors import CapacityError, GnpError
from pipeline.ledger import Ledger
from pipeline.plan import Item, Plan, Progress, Take, pending, progress, require_unchanged
from pipeline.pools import Node, Pools, Sizing, size
from pipeline.shards import ShardFile
from pipeline.stages import Generator, Scorer
from pipeline.storage import Storage

# Before Ray is imported: no usage reports, no warning about its own change of default for CUDA_VISIBLE_DEVICES, and of
# its C++ side's messages on our terminal only the one that says so.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
import ray
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext

log = logging.getLogger(__name__)

# An item is tried so often before it is listed as failed.
ATTEMPTS = 3
# Ray Data puts one block an item from the driver; more are handed over in windows, so that its memory stays bounded.
_WINDOW = 5000
# How many times Ray itself repeats a task whose actor died; its default is for ever.
_TASK_RETRIES = 3


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        items: How many items had work to do; 0 where everything was committed before.
        failed: Name of every item that is still incomplete → the reason.
        usable: Images of this data that are committed, from this run or an earlier one.
        quarantined: Images of this data that could not be used.
        seconds: Wall-clock time.
    """

    items: int
    failed: dict[str, str]
    usable: int
    quarantined: int
    seconds: float


def run(
    plan: Plan,
    store: str,
    *,
    pools: Pools,
    address: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Makes what is missing of a plan.

    Args:
        plan: What is to be made.
        store: URL of the store; every worker opens it from its own environment.
        pools: How many workers, and what each is given.
        address: A Ray cluster; by default the one of this process, or else a local one.
        on_progress: Called every few seconds, from another thread.

    Raises:
        CapacityError: The cluster cannot hold the pools.
        StorageError: The store cannot be written, or does not honour put-if-absent.
        RecipeError: A shard is not the one that the store's results were made from.
    """
    started = time.monotonic()
    storage = Storage(store, create=True)
    storage.probe()
    ledger = Ledger(storage)
    require_unchanged(plan, ledger)
    ledger.record_plan(plan.describe())
    if not pending(plan, ledger):
        return _outcome(plan, ledger, 0, {}, started)
    sizing = size(pools, _connect(address))
    log.info("%s", sizing)
    items = left = pending(plan, ledger, workers=sizing.generators)
    reasons: dict[str, str] = {}
    with _Watch(plan, ledger, on_progress):
        for attempt in range(1, ATTEMPTS + 1):
            for start in range(0, len(left), _WINDOW):
                reasons |= _stream(left[start : start + _WINDOW], plan, storage.url, sizing)
            left = pending(plan, ledger, workers=sizing.generators)
            if not left:
                break
            log.info("attempt %d of %d left %d of %d items incomplete", attempt, ATTEMPTS, len(left), len(items))
    failed = {item.name: reasons.get(item.name, "its worker died or never answered") for item in left}
    return _outcome(plan, ledger, len(items), failed, started)


def _outcome(plan: Plan, ledger: Ledger, items: int, failed: dict[str, str], started: float) -> Outcome:
    originals = list(ledger.markers(ledger.units(f"original/{plan.dataset}")))
    return Outcome(
        items=items,
        failed=failed,
        usable=sum(marker.fact("n_ok") for marker in originals),
        quarantined=sum(marker.fact("n_quarantined") for marker in originals),
        seconds=time.monotonic() - started,
    )


class _Worker:
    """One actor: a stage, and receipts in and out. An item's failure is a receipt, never the actor's end."""

    def __init__(self, stage: type[Generator] | type[Scorer], plan: Plan, store: str, threads: int) -> None:
        _settle_arithmetic(threads)
        device = torch.device("cuda") if torch.cuda.is_available() and ray.get_gpu_ids() else torch.device("cpu")
        self.stage = stage(plan, Ledger(Storage(store)), device)

    def __call__(self, batch: dict[str, Sequence[Any]]) -> dict[str, list[Any]]:
        item, error = batch["item"][0], batch["error"][0]
        try:
            self.stage.run(_item(item))
        except GnpError as failure:
            error = error or str(failure)
        except Exception as failure:  # a defect: listed with the item, and whole in the worker's log
            log.exception("item %s", item)
            error = error or f"{type(failure).__name__}: {failure}"
        return {"item": [item], "error": [error]}


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


def _stream(items: Sequence[Item], plan: Plan, store: str, sizing: Sizing) -> dict[str, str]:
    """Runs items through both pools; returns the reason of each that failed and whose worker lived to say so."""
    rows: Any = ray.data.from_items(
        [{"item": json.dumps(asdict(item)), "error": ""} for item in items], override_num_blocks=len(items)
    )
    # Ray 2.60 deprecates this way of bounding its retries and offers no other; its default is to retry for ever.
    warnings.filterwarnings("ignore", message=".*ray_remote_args_fn", category=DeprecationWarning)
    pools = ((Generator, sizing.generators, sizing.generator_gpus), (Scorer, sizing.scorers, sizing.scorer_gpus))
    for stage, workers, gpus in pools:
        rows = rows.map_batches(
            _Worker,
            fn_constructor_args=(stage, plan, store, sizing.threads),
            batch_size=1,
            # One item in flight: those queued on an actor that dies would wait for its restart.
            compute=ActorPoolStrategy(size=min(workers, len(items)), max_tasks_in_flight_per_actor=1),
            num_cpus=sizing.cpus,
            num_gpus=gpus,
            ray_remote_args_fn=lambda: {"max_task_retries": _TASK_RETRIES},
        )
    try:
        return {_item(row["item"]).name: row["error"] for row in rows.iter_rows() if row["error"]}
    except ray.exceptions.RayError as error:  # workers that cannot start end the stream, not single items
        reason = str(error).strip().splitlines()[-1]
        log.warning("the workers' stream ended early: %s", reason)
        return dict.fromkeys((item.name for item in items), reason)


def _item(text: str) -> Item:
    """An item from its JSON."""
    fields = json.loads(text)
    take = fields.pop("take")
    return Item(take=Take(ShardFile(**take["shard"]), take["images"]), **fields)


def _connect(address: str | None) -> list[Node]:
    """Joins or starts Ray, sets what Ray Data's defaults get wrong for long items, and returns the live nodes."""
    if not ray.is_initialized():
        dashboard = None if address else False
        try:
            ray.init(address=address, include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
        except (ValueError, ConnectionError, RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CapacityError(f"no Ray at {address or 'this machine'}: {reason}") from error
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are listed by name at the end instead
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a poison item is one lost block, found by reconciliation
    context.execution_no_progress_timeout_s = -1  # items may take hours
    context.actor_task_retry_on_errors = False  # exceptions come back as receipts
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=node.get("CPU", 0), gpus=node.get("GPU", 0)) for node in resources if node.get("CPU")]


class _Watch:
    """While entered, reports progress from the store, spending at most a twentieth of the time on listing it."""

    def __init__(self, plan: Plan, ledger: Ledger, report: Callable[[Progress], None]) -> None:
        self._plan, self._ledger, self._report = plan, ledger, report
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
            except GnpError as error:  # a look that fails must not end the run that it looks at
                log.warning("progress: %s", error)
            wait = max(1.0, 20 * (time.monotonic() - started))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
