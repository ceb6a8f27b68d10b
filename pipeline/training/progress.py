"""Progress of a training run, read from the records that its workers write to the store."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StorageError
from pipeline.training.records import TrainingRecords

_POLL_S = 2.0


@dataclass(frozen=True)
class TrainingProgress:
    """A saved state inside an epoch, or a finished epoch.

    Attributes:
        epoch: The epoch, from 1; 0 is before training.
        step: The step in that epoch.
        steps: Number of steps of the epoch.
        figures: Figures of a finished epoch, as in `TrainingOutcome.epochs`.
    """

    epoch: int
    step: int = 0
    steps: int = 0
    figures: dict[str, Any] | None = None


@contextlib.contextmanager
def report_progress(records: TrainingRecords, on_progress: Callable[[TrainingProgress], None]) -> Iterator[None]:
    """Calls back for each saved state and finished epoch, from a thread; first for those of earlier processes."""
    ended = threading.Event()

    def poll() -> None:
        reported, state, last = 0, None, False
        while not last:
            last = ended.wait(_POLL_S)
            with contextlib.suppress(StorageError):  # if the store is gone, the workers raise it
                epochs = records.read_figures()
                for figures in epochs[reported:]:
                    on_progress(TrainingProgress(figures["epoch"], figures=figures))
                reported = len(epochs)
                saved = records.state_record()
                if saved and saved["step"] and saved != state:
                    on_progress(TrainingProgress(saved["epoch"] + 1, saved["step"], saved["steps"]))
                state = saved

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)
