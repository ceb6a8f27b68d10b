"""Batches that fit: where a device runs out of memory, half as many images at a time; and which size is fastest."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import CapacityError

log = logging.getLogger(__name__)

# Twice as many images at a time pay if each then takes less than so much of the time.
_PAYS = 0.95
# Of a device's memory: what is to stay free, for an attack that needs more than another; and what doubling may need.
_HEAD_ROOM, _TO_DOUBLE = 0.2, 0.5

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
    best, least, size = 0, math.inf, 1
    while size <= most and size <= 4 * max(best, 1):
        try:
            spent = min(_seconds(function, size, device) for _ in range(2)) / size
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            spent = math.inf
        free = _free(device)
        if spent < _PAYS * least and free >= _HEAD_ROOM:
            best, least = size, spent
        if spent == math.inf or free < _TO_DOUBLE:
            break
        size *= 2
    if not best:
        raise CapacityError("one image does not fit into the device's memory with a fifth of it to spare")
    log.info("%d images at a time are fastest: %.1f ms an image", best, 1000 * least)
    return best


def _seconds(function: Callable[[int], object], size: int, device: torch.device) -> float:
    started = time.perf_counter()
    function(size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _free(device: torch.device) -> float:
    """The share of the device's memory that the work so far left free at its peak.

    Of a CPU, what the machine has available now: a worker keeps its heap (`heap.keep`), and with it its peak.
    """
    if device.type == "cuda":
        return 1 - torch.cuda.max_memory_allocated(device) / torch.cuda.get_device_properties(device).total_memory
    known = Path("/proc/meminfo")
    if not known.exists():
        return 1.0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in known.read_text().splitlines() if line.endswith("kB")}
    return sizes["MemAvailable"] / sizes["MemTotal"]


def _is_out_of_memory(error: BaseException) -> bool:
    # A CPU's allocator raises a plain RuntimeError, and so does its convolution library, which does not say why.
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(each in said for each in _CPU_MEMORY)
