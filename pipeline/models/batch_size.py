"""Batch sizes: halves a batch that runs out of memory, and measures which size is fastest."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import CapacityError
from pipeline.models import malloc
from pipeline.models.device import free_gpu_memory_bytes, is_out_of_memory, release_memory

log = logging.getLogger(__name__)

# A doubled batch is faster if an image takes less than this share of the time that it took before.
_WORTHWHILE_TIME = 0.95
# Largest share of the free memory, as another attack may need more.
_MOST_MEMORY = 0.8


def run_in_batches(function: Callable[[slice], Tensor], count: int, size: int) -> tuple[list[Tensor], int]:
    """Calls a function on consecutive slices of images, and halves the slices where memory runs out.

    Args:
        function: Computes the result of one slice.
        count: Number of images.
        size: Number of images at a time.

    Returns:
        The results in order, and the last batch size, which a byte-identical rerun needs.

    Raises:
        CapacityError: Not even one image fits.
    """
    results: list[Tensor] = []
    start = 0
    while start < count:
        try:
            results.append(function(slice(start, min(start + size, count))))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        else:
            start += size
            continue
        # Outside of the handler, whose traceback keeps the tensors of the failed batch alive.
        if size == 1:
            raise CapacityError(f"one image does not fit into the device's memory: {reason}")
        size = max(1, size // 2)
        log.warning("out of memory; continuing with %d images at a time (%s)", size, reason)
        release_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return results, size


def fastest_batch_size(function: Callable[[int], object], *, most: int, device: torch.device) -> int:
    """The fastest batch size: doubled while that is faster per image and leaves a part of the memory free.

    Args:
        function: Does the work for a number of images.
        most: Largest batch size.
        device: The device that does the work.

    Raises:
        CapacityError: Not even one image fits.
    """
    memory = _PeakMemory(device)
    best, least_s, size = 1, math.inf, 1
    while size <= min(most, 4 * best):
        try:
            image_s = min(_seconds(function, size, device) for _ in range(2)) / size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error)
        else:
            failure = ""
        if failure:  # outside of the handler, as above
            release_memory(device)
            if size == 1:
                raise CapacityError(f"one image does not fit into the device's memory: {failure}")
            break
        used = memory.used_share()
        if image_s < _WORTHWHILE_TIME * least_s and (size == 1 or used <= _MOST_MEMORY):
            best, least_s = size, image_s
        if 2 * used > _MOST_MEMORY:
            break
        size *= 2
    log.info("%d images at a time are fastest: %.1f ms an image", best, 1000 * least_s)
    return best


def _seconds(function: Callable[[int], object], size: int, device: torch.device) -> float:
    started = time.perf_counter()
    function(size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


class _PeakMemory:
    """Peak memory use from now on, as a share of the memory that the device has free now."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: float = torch.cuda.memory_allocated(device)
            self._free: float = free_gpu_memory_bytes(device)
        else:
            malloc.release_freed_memory()
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            self._before = _peak_bytes()
            self._free = _free_bytes()

    def used_share(self) -> float:
        """The share; 0 where the system does not report it."""
        is_cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if is_cuda else _peak_bytes()
        return (peak - self._before) / self._free


def _peak_bytes() -> float:
    return _read_kilobytes(Path("/proc/self/status")).get("VmHWM", 0) * 1024


def _free_bytes() -> float:
    """Free memory of the machine or of the container, whichever is less."""
    free = [_read_kilobytes(Path("/proc/meminfo")).get("MemAvailable", math.inf) * 1024]
    with contextlib.suppress(OSError, ValueError):  # no limit: no file, or "max"
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(1.0, min(free))


def _read_kilobytes(file: Path) -> dict[str, float]:
    """The entries in kB of a list under /proc; empty where there is no such file."""
    if not file.exists():
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in file.read_text().splitlines() if line.endswith(" kB")}
