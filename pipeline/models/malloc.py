"""Memory of the C heap (glibc malloc): kept by a worker while it works, released to the system when it is idle.

A gradient's activations are gigabytes that are freed a moment later. glibc returns them to the system, which clears
every page again at the next step: on a CPU a fifth to a third of the time of an EfficientNet-Lite0's gradient.

Parameters that a process sets while it runs hold for its main thread. Other threads, such as the one in which a Ray
actor runs its methods, have arenas of their own by then, which cannot keep large blocks: for them, `ENVIRONMENT` has to
be there when the process starts.
"""

import ctypes

# mallopt's parameters, as glibc's malloc.h numbers them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
# Where glibc's own rule ends up once it has seen large blocks.
_DEFAULT_MMAP_THRESHOLD, _DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 32 << 20, 64 << 20, 65536

# What `keep_freed_memory` sets, as environment variables that glibc reads when a process starts: for all its threads.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def keep_freed_memory() -> None:
    """Makes the main thread keep the memory that it frees, for its next step; does nothing without glibc."""
    # One arena only, as the arenas of other threads cannot hold large blocks; and no blocks from mmap.
    _set_parameters({_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1})


def release_freed_memory() -> None:
    """Returns freed memory to the system; a process that keeps its memory calls it from time to time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def restore_defaults() -> None:
    """Sets glibc's own parameters again."""
    _set_parameters(
        {
            _MMAP_MAX: _DEFAULT_MMAP_MAX,
            _MMAP_THRESHOLD: _DEFAULT_MMAP_THRESHOLD,
            _TRIM_THRESHOLD: _DEFAULT_TRIM_THRESHOLD,
        }
    )


def _set_parameters(parameters: dict[int, int]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc has it, and mallopt of other libraries means other things
        for parameter, value in parameters.items():
            libc.mallopt(parameter, value)
