"""The C library's heap: kept from step to step, and handed back from item to item.

A gradient's activations are gigabytes that are freed a moment later. glibc hands them back to the system, which clears
every page anew at the next step: on a CPU a fifth to a third of an EfficientNet-Lite0's gradient.
"""

import ctypes

# mallopt's parameters, as glibc's malloc.h numbers them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
# Where glibc's own rule ends up once it has seen large blocks.
_USUAL_MMAP, _USUAL_TRIM, _USUAL_MMAPS = 32 << 20, 64 << 20, 65536


def keep() -> None:
    """What is freed from now on stays with this process, for its next step; without glibc nothing happens."""
    # Of one arena, for those of other threads cannot hold large blocks; and none of the system's own (mmap).
    _set({_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1})


def hand_back() -> None:
    """Gives the system what is free; a process that keeps its heap calls it now and then."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def usual() -> None:
    """As glibc would have it by itself."""
    _set({_MMAP_MAX: _USUAL_MMAPS, _MMAP_THRESHOLD: _USUAL_MMAP, _TRIM_THRESHOLD: _USUAL_TRIM})


def _set(parameters: dict[int, int]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc has it, and others' mallopt means other things
        for parameter, value in parameters.items():
            libc.mallopt(parameter, value)
