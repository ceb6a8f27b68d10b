"""Base class of both stages: reading and committing parts, totals and timings, batch sizes, errors of single units."""

import contextlib
import logging
import os
import platform
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from pipeline.data import parts
from pipeline.data.parts import Images
from pipeline.errors import CapacityError, IntegrityError, Interrupted, MissingError, ShardError
from pipeline.ledger import CommittedParts, Ledger, Marker, Unit
from pipeline.ledger.progress import Phase, StageTotals
from pipeline.models.batch_size import fastest_batch_size
from pipeline.plan.outline import Item, source_scopes
from pipeline.plan.resolve import Plan
from pipeline.version import VERSION

log = logging.getLogger(__name__)

# The packages whose versions can change a result's bytes.
_RECORDED = ("torch", "timm", "pillow", "webdataset")
# Of a recipe that sets none. A GPU is idle between launches with so few.
_CPU_BATCH_SIZE = 32


def _never() -> bool:
    return False


class Stage(ABC):
    """One step from an item to its results, on one device.

    Args:
        plan: What the run computes.
        ledger: The store's markers and data.
        device: Where models compute.
        stopping: Called before each unit; true ends the item there.
    """

    def __init__(self, plan: Plan, ledger: Ledger, device: torch.device, stopping: Callable[[], bool] = _never) -> None:
        self.plan = plan
        self.ledger = ledger
        self.device = device
        self.stopping = stopping
        self.threads = torch.get_num_threads()  # of this worker; in a thread started later torch may report another
        self._item: Item | None = None
        self._totals: dict[Item | None, StageTotals] = {}
        self._totals_lock = threading.Lock()
        self._fastest_sizes: dict[Hashable, int] = {}
        self.set_up()

    @abstractmethod
    def set_up(self) -> None:
        """Prepares the stage for its first item; raises if it cannot work."""

    @abstractmethod
    def run(self, item: Item, *, attempt: int = 1) -> StageTotals:
        """Computes and commits the missing units of an item; after an error, `take_totals` gives what was committed."""

    def announce_next(self, item: Item, require: Callable[[], None]) -> None:
        """Announces the item that will probably run next, so that the coming `run` can start reading it.

        Args:
            item: The item after the coming one.
            require: Called before anything is done for it; raises if another run works on it.
        """
        del item, require

    def list_committed(self, item: Item) -> CommittedParts:
        """Which units of an item's shard and source are committed."""
        return self.ledger.list_committed(
            source_scopes(self.plan.outline, item.source), shard=item.selection.shard.name
        )

    def start_item(self, item: Item) -> None:
        """Makes an item the current one, to which totals and timings are added by default."""
        with self._totals_lock:
            self._item = item

    def take_totals(self) -> StageTotals:
        """Returns the current item's totals since the last call, and resets them."""
        with self._totals_lock:
            return self._totals.pop(self._item, StageTotals())

    def add_totals(self, totals: StageTotals, item: Item | None = None) -> None:
        """Adds to the totals of an item, by default the current one; callable from any thread."""
        with self._totals_lock:
            item = item or self._item
            self._totals[item] = self._totals.get(item, StageTotals()) + totals

    @contextlib.contextmanager
    def timed(self, phase: Phase, item: Item | None = None) -> Iterator[None]:
        """Adds the seconds spent inside this context to a phase of an item, by default the current one."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add_totals(StageTotals(seconds={phase: time.monotonic() - started}), item)

    def read_part(self, unit: Unit, item: Item) -> tuple[Marker, Images]:
        """Marker and images of a committed part; the time is added to `item`."""
        with self.timed("get", item):
            marker = self.ledger.read_marker(unit)
            tar = self.ledger.read_data(marker)
        with self.timed("decode", item):
            images = parts.decode_tar(tar, name=marker.object)
            if self.device.type == "cuda":  # from pinned memory, pixels reach a GPU several times as fast
                images = replace(images, pixels=images.pixels.pin_memory())
            return marker, images

    def commit_unit(self, commit: Callable[[], None], image_count: int, errors: "DeferredErrors") -> None:
        """Commits one unit and counts it; runs in a background thread."""
        with errors.deferring():
            commit()
            self.add_totals(StageTotals(1, image_count))

    def require_not_stopped(self) -> None:
        """Ends the item between two units.

        Raises:
            Interrupted: The stage is asked to stop.
        """
        if self.stopping():
            raise Interrupted("stopped on request; what is committed stands")

    def choose_batch_size(self, work: Hashable, images: Images, compute: Callable[[Images], object]) -> int:
        """The recipe's batch size, or with `"auto"`, a GPU's default, the fastest here, measured once per kind of work.

        Args:
            work: The kind of work.
            images: Images to measure with.
            compute: Does the work on all the images that it is given.
        """
        size, count = self.plan.job.batch_size, len(images.keys)
        if size is None and self.device.type == "cpu":
            return _CPU_BATCH_SIZE
        if isinstance(size, int):
            return size
        if not count:
            return 1
        if work not in self._fastest_sizes:
            self._fastest_sizes[work] = fastest_batch_size(
                lambda wanted: compute(parts.select(images, [index % count for index in range(wanted)])),
                most=self.plan.job.data.part_size,
                device=self.device,
            )
        return self._fastest_sizes[work]

    def lower_batch_size(self, work: Hashable, size: int) -> None:
        """Replaces the batch size of a kind of work by a lower one that fitted into memory."""
        self._fastest_sizes[work] = size

    def execution_facts(self, *, batch_size: int | None, started: float, attempt: int) -> dict[str, Any]:
        """Facts for a marker about how a result was computed; a rerun with the same gives the same bytes."""
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


class DeferredErrors:
    """Errors of single units, kept until the item's other units are done."""

    def __init__(self) -> None:
        self._first: Exception | None = None

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        """Keeps an error that concerns one unit: its bytes, images, gradient, memory. Any other ends the item."""
        try:
            yield
        except (IntegrityError, MissingError, ShardError, CapacityError, FloatingPointError) as error:
            log.warning("%s", error)
            lasts = isinstance(self._first, ShardError) and not isinstance(error, ShardError)  # no other try cures it
            if self._first is None or lasts:
                self._first = error

    def raise_first(self) -> None:
        """Raises the first error that another try may cure, else the first, if there was one."""
        if self._first is not None:
            raise self._first
