"""Batches that fit: where a device runs out of memory, half as many images at a time."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.errors import CapacityError

log = logging.getLogger(__name__)

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


def _is_out_of_memory(error: BaseException) -> bool:
    # A CPU's allocator raises a plain RuntimeError, and so does its convolution library, which does not say why.
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(each in said for each in _CPU_MEMORY)
