"""What both stages have in common: a place to work at, and what is said of the work."""

import contextlib
import logging
import os
import platform
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from importlib.metadata import version
from typing import Any

import torch

from pipeline.data import parts
from pipeline.data.parts import Images
from pipeline.errors import CapacityError, IntegrityError, Interrupted, MissingError, ShardError
from pipeline.ledger import Ledger, Marker, Unit
from pipeline.ledger.progress import Made, Phase
from pipeline.models import batch_size as batches
from pipeline.plan.outline import Item
from pipeline.plan.resolve import Plan
from pipeline.version import VERSION

log = logging.getLogger(__name__)

# The packages whose versions can change a result's bytes.
_RECORDED = ("torch", "timm", "pillow", "webdataset")


def _never() -> bool:
    return False


class Stage(ABC):
    """One step from an item to its results, on a device of its own.

    Args:
        plan: What is to be made.
        ledger: Where.
        device: On what.
        stopping: Asked before each unit; true ends the item there.
    """

    def __init__(self, plan: Plan, ledger: Ledger, device: torch.device, stopping: Callable[[], bool] = _never) -> None:
        self.plan = plan
        self.ledger = ledger
        self.device = device
        self.stopping = stopping
        self._item: Item | None = None
        self._made: dict[Item | None, Made] = {}
        self.threads = torch.get_num_threads()  # of this worker; a thread started later would not know
        self._counting = threading.Lock()
        self._fastest: dict[Hashable, int] = {}
        self.open()

    @abstractmethod
    def open(self) -> None:
        """Gets ready for items; what cannot work fails here."""

    @abstractmethod
    def run(self, item: Item, *, attempt: int = 1) -> Made:
        """Makes what is missing of an item; of one that fails, `collected` says how far it has come."""

    def prepare(self, item: Item, require: Callable[[], None]) -> None:
        """Has the next run begin, beside its own item, what can be done for one that will probably follow; or nothing.

        Args:
            item: Which.
            require: Called before anything is done for it; raises where it is somebody else's.
        """
        del item, require

    def begin(self, item: Item) -> None:
        """Has what is counted from now on, and has been of an item that was read ahead, be that item's."""
        with self._counting:
            self._item = item

    def collected(self) -> Made:
        """What has been made of the item at hand since this was last asked."""
        with self._counting:
            return self._made.pop(self._item, Made())

    def count(self, made: Made, item: Item | None = None) -> None:
        """Adds to what has been made of an item, by default the one at hand; from any thread."""
        with self._counting:
            item = item or self._item
            self._made[item] = self._made.get(item, Made()) + made

    @contextlib.contextmanager
    def timed(self, phase: Phase, item: Item | None = None) -> Iterator[None]:
        """Counts what is done meanwhile, in this thread, as an item's time of a phase; by default the one at hand's."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.count(Made(seconds={phase: time.monotonic() - started}), item)

    def fetched(self, unit: Unit, item: Item) -> tuple[Marker, Images]:
        """A committed part's marker and images, for an item."""
        with self.timed("get", item):
            marker = self.ledger.marker(unit)
            tar = self.ledger.read(marker)
        with self.timed("decode", item):
            return marker, parts.read(tar, name=marker.object)

    def put_away(self, commit: Callable[[], None], images: int, failures: "Failures") -> None:
        """Commits one unit of so many images, beside the device's work; a failure that is its own is noted."""
        with failures.noted():
            commit()
            self.count(Made(1, images))

    def require_going_on(self) -> None:
        """Asked between two units.

        Raises:
            Interrupted: The stage was told to stop.
        """
        if self.stopping():
            raise Interrupted("told to stop; what is committed stands")

    def batch_size(self, work: Hashable, images: Images, function: Callable[[Images], object]) -> int:
        """How many images at a time: what the recipe says, or what is fastest here, found once for each kind of work.

        Args:
            work: What tells it from other kinds.
            images: Some to try it on.
            function: Does it, with all its images at once.
        """
        size, count = self.plan.job.batch_size, len(images.keys)
        if size != "auto":
            return size
        if not count:
            return 1
        if work not in self._fastest:
            self._fastest[work] = batches.fastest(
                lambda wanted: function(parts.taken(images, [index % count for index in range(wanted)])),
                most=self.plan.job.data.part_size,
                device=self.device,
            )
        return self._fastest[work]

    def circumstances(self, *, batch_size: int | None, started: float, attempt: int) -> dict[str, Any]:
        """Under what a result was made: with the same, a rerun gives the same bytes."""
        return {
            "attempt": attempt,
            "batch_size": batch_size,
            "worker": f"{platform.node()}:{os.getpid()}",
            "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "seconds": round(time.monotonic() - started, 3),
            "versions": {"gnp": VERSION} | {name: version(name) for name in _RECORDED},
        }


class Failures:
    """Failures of single units, kept until the others are done."""

    def __init__(self) -> None:
        self._first: Exception | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Keeps what is one unit's own: its stored bytes, its images, its gradient. All else ends the item at once."""
        try:
            yield
        except (IntegrityError, MissingError, ShardError, CapacityError, FloatingPointError) as error:
            log.warning("%s", error)
            self._first = self._first or error

    def tell(self) -> None:
        """Raises the first, if there was one."""
        if self._first is not None:
            raise self._first
