"""Batches that fit: where a device runs out of memory, half as many images at a time; and which size is fastest."""

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

log = logging.getLogger(__name__)

# Twice as many images at a time pay if each then takes less than so much of the time.
_PAYS = 0.95
# Of the memory that is free, for another attack may need more.
_MOST = 0.8

_CPU_MEMORY = ("can't allocate memory", "could not create a primitive")


def run(function: Callable[[slice], Tensor], count: int, size: int) -> tuple[list[Tensor], int]:
    """Calls a function on consecutive slices of images, halving them where memory runs out.

    Args:
        function: What to compute; its result for one slice.
        count: How many images there are.
        size: How many to take at a time.

    Returns:
        The results in order, and the size that was come down to: part of what makes a rerun byte-identical.

    Raises:
        CapacityError: Not even one image fits.
    """
    made: list[Tensor] = []
    start = 0
    while start < count:
        try:
            made.append(function(slice(start, min(start + size, count))))
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        else:
            start += size
            continue
        # Out of the handler, whose traceback keeps the tensors of the failed batch alive.
        if size == 1:
            raise CapacityError(f"one image does not fit into the device's memory: {reason}")
        size = max(1, size // 2)
        log.warning("out of memory; going on with %d images at a time (%s)", size, reason)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return made, size


def fastest(function: Callable[[int], object], *, most: int, device: torch.device) -> int:
    """How many images at a time are fastest: doubled while that pays, and while it fits with room to spare.

    Args:
        function: Does the work for so many images.
        most: No more than so many.
        device: Whose memory it takes.

    Raises:
        CapacityError: Not even one image fits.
    """
    memory, best, least, size = _Memory(device), 1, math.inf, 1
    while size <= min(most, 4 * best):
        try:
            spent = min(_seconds(function, size, device) for _ in range(2)) / size
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if size == 1:
                raise CapacityError(f"one image does not fit into the device's memory: {error}") from error
            break
        taken = memory.taken()
        if spent < _PAYS * least and (size == 1 or taken <= _MOST):
            best, least = size, spent
        if 2 * taken > _MOST:
            break
        size *= 2
    log.info("%d images at a time are fastest: %.1f ms an image", best, 1000 * least)
    return best


def _seconds(function: Callable[[int], object], size: int, device: torch.device) -> float:
    started = time.perf_counter()
    function(size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


class _Memory:
    """How much of the memory that a device has free now is taken at the peak of what is done from now on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: float = torch.cuda.memory_allocated(device)
            # What this process has reserved and does not use is free for it.
            self._free: float = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - self._before
        else:
            malloc.hand_back()
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            self._before = _peak_bytes()
            self._free = _free_bytes()

    def taken(self) -> float:
        """The share; 0 where the system does not tell."""
        cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if cuda else _peak_bytes()
        return (peak - self._before) / self._free


def _peak_bytes() -> float:
    return _kilobytes(Path("/proc/self/status")).get("VmHWM", 0) * 1024


def _free_bytes() -> float:
    """Of the machine, or of the container, whichever is less."""
    free = [_kilobytes(Path("/proc/meminfo")).get("MemAvailable", math.inf) * 1024]
    with contextlib.suppress(OSError, ValueError):  # no such limit, or "max"
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(1.0, min(free))


def _kilobytes(file: Path) -> dict[str, float]:
    """What a file of the kernel's lists; nothing where there is none."""
    if not file.exists():
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in file.read_text().splitlines() if line.endswith(" kB")}


def _is_out_of_memory(error: BaseException) -> bool:
    # A CPU's allocator raises a plain RuntimeError, and so does its convolution library, which does not say why.
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(each in said for each in _CPU_MEMORY)
