"""How far training is, told from what its workers record in the store, wherever they are."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StorageError
from pipeline.training.records import Records

_EVERY_S = 2.0


@dataclass(frozen=True)
class Progress:
    """A state that was kept, or an epoch that is over.

    Attributes:
        epoch: From 1; 0 is before training.
        step: Of that epoch.
        steps: How many it has.
        figures: Of an epoch that is over: as `Outcome.epochs` has them.
    """

    epoch: int
    step: int = 0
    steps: int = 0
    figures: dict[str, Any] | None = None


@contextlib.contextmanager
def followed(records: Records, on_progress: Callable[[Progress], None]) -> Iterator[None]:
    """While entered, tells of each state and epoch, those of earlier processes first; from a thread of its own."""
    ended = threading.Event()

    def follow() -> None:
        epochs, state, last = 0, None, False
        while not last:
            last = ended.wait(_EVERY_S)
            with contextlib.suppress(StorageError):  # where the store is gone, workers end and say so
                over = records.epochs()
                for figures in over[epochs:]:
                    on_progress(Progress(figures["epoch"], figures=figures))
                epochs = len(over)
                kept = records.last()
                if kept and kept["step"] and kept != state:
                    on_progress(Progress(kept["epoch"] + 1, kept["step"], kept["steps"]))
                state = kept

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)
