"""What a run says of itself while it goes on, and what ends it early."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.engine.scheduler import Office
from pipeline.errors import StorageError
from pipeline.ledger import Ledger, leases
from pipeline.ledger.progress import Progress, Tally, progress
from pipeline.storage import Storage

log = logging.getLogger(__name__)


@contextlib.contextmanager
def heart(office: Office, storage: Storage) -> Iterator[None]:
    """While entered, says every few seconds that the run is alive, and at the end how it ended."""

    def beat(state: str = "running") -> None:
        tally = office.tally()
        counts = {
            "items": tally.items,
            "items_left": tally.items_left,
            "images": tally.attacked.images,
            "failed": tally.failed,
            "seconds": round(tally.seconds, 1),
        }
        leases.beat(storage, office.run, plan=office.plan_id, state=state, counts=counts)

    beat()
    try:
        with _repeatedly(beat, lambda _: leases.BEAT_S, called="heartbeat"):  # one that fails: the lease may run out
            yield
    finally:
        with contextlib.suppress(StorageError):
            beat("failed" if office.state == "running" else office.state)


@contextlib.contextmanager
def watch(
    described: Mapping[str, Any], ledger: Ledger, office: Office, report: Callable[[Progress, Tally], None]
) -> Iterator[None]:
    """While entered, reports progress from the store, spending at most a twentieth of the time on listing it."""

    def look() -> None:
        report(progress(described, ledger), office.tally())

    try:
        with _repeatedly(look, lambda took_s: max(1.0, 20 * took_s), called="progress"):
            yield
    finally:
        with contextlib.suppress(StorageError):
            look()


@contextlib.contextmanager
def signals_set(stop: threading.Event) -> Iterator[None]:
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


@contextlib.contextmanager
def _repeatedly(action: Callable[[], None], pause: Callable[[float], float], *, called: str) -> Iterator[None]:
    """While entered, calls `action` in a thread of its own, `pause(seconds of the last call)` apart.

    A call that fails is logged, whatever it raised: it must not end the run that it speaks of, nor later calls.
    """
    stop = threading.Event()

    def repeat() -> None:
        took_s = 0.0
        while not stop.wait(pause(took_s)):
            started = time.monotonic()
            try:
                action()
            except Exception as error:
                log.warning("%s: %s", called, error)
            took_s = time.monotonic() - started

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
