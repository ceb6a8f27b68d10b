"""What a run repeats while it works: its heartbeat in the store, and progress reports to its caller."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from pipeline.engine.scheduler import Scheduler
from pipeline.errors import StorageError
from pipeline.ledger import Ledger, leases
from pipeline.ledger.finished_shards import add_to_index
from pipeline.ledger.progress import Progress, Tally, count_progress, list_plan
from pipeline.plan.outline import PickledPlan
from pipeline.storage import Storage

log = logging.getLogger(__name__)


@contextlib.contextmanager
def heartbeats(scheduler: Scheduler, storage: Storage) -> Iterator[None]:
    """While entered, rewrites the run's record every few seconds; at the end, records how the run ended."""

    def beat(state: str = "running") -> None:
        tally = scheduler.tally()
        counts = {
            "items": tally.items,
            "items_left": tally.items_left,
            "images": tally.attacked.images,
            "failed": tally.failed,
            "seconds": round(tally.seconds, 1),
        }
        leases.write_heartbeat(storage, scheduler.run, plan=scheduler.plan_id, state=state, counts=counts)

    beat()
    try:
        with _repeated(beat, lambda _: leases.HEARTBEAT_S, name="heartbeat"):  # where one fails, the lease may run out
            yield
    finally:
        with contextlib.suppress(StorageError):
            beat("failed" if scheduler.state == "running" else scheduler.state)


@contextlib.contextmanager
def progress_reports(
    plan: PickledPlan,
    ledger: Ledger,
    scheduler: Scheduler,
    on_progress: Callable[[Progress, Tally], None],
) -> Iterator[None]:
    """While entered, reports progress as the store shows it; listing the store takes at most 1/20 of the time.

    What is finished is added to the index of finished shards on the way.
    """
    record = plan.outline.record

    def report() -> None:
        committed = list_plan(record, ledger)
        on_progress(count_progress(record, committed, plan.part_counts), scheduler.tally())
        add_to_index(ledger.storage, committed, record["shards"])

    try:
        with _repeated(report, lambda took_s: max(1.0, 20 * took_s), name="progress"):
            yield
    finally:
        with contextlib.suppress(StorageError):
            report()


@contextlib.contextmanager
def _repeated(action: Callable[[], None], pause_s: Callable[[float], float], *, name: str) -> Iterator[None]:
    """While entered, calls `action` in a thread again and again; `pause_s` gives the pause for a call's duration (s).

    A call that raises is logged, whatever it raised: it must end neither the run nor later calls.
    """
    stop = threading.Event()

    def repeat() -> None:
        took_s = 0.0
        while not stop.wait(pause_s(took_s)):
            started = time.monotonic()
            try:
                action()
            except Exception as error:
                log.warning("%s: %s", name, error)
            took_s = time.monotonic() - started

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
