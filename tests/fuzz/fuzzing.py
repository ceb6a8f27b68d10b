"""Shared by the fuzz tests: their Hypothesis settings, corruption of valid files, and which errors are allowed."""

import contextlib
import random
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pipeline.errors import GnpError
from tests.conftest import TRIED

# CPU time that one input may take; the slowest valid one takes a tenth of it.
_MAX_CPU_S = 5.0

# Each test draws a seed, and all else from `random.Random(seed)`.
seeds = st.integers(0, 2**32)


def fuzz_settings(count: int) -> settings:
    """Hypothesis settings for `count` inputs, the same ones in every run: a failure in CI can be repeated anywhere."""
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


@contextlib.contextmanager
def only_gnp_errors(reader: str) -> Iterator[None]:
    """Counts an input of `reader`; fails on any error other than a GnpError, and on an input that takes too long."""
    TRIED[reader] += 1
    start = time.process_time()
    with contextlib.suppress(GnpError):
        yield
    assert time.process_time() - start < _MAX_CPU_S


def corrupt(data: bytes, rng: random.Random, donors: Sequence[bytes]) -> bytes:
    """Returns a valid file after one to eight random edits; some take bytes from one of `donors`."""
    corrupted = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        start = rng.randrange(len(corrupted) + 1)
        end = min(len(corrupted), start + rng.choice((1, 4, 30, 512, 2000)))
        donor = rng.choice(donors)
        edit = rng.randrange(9)
        if edit == 0 and start < len(corrupted):
            corrupted[start] ^= 1 << rng.randrange(8)
        elif edit == 1 and start < len(corrupted):
            corrupted[start] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif edit == 2:
            del corrupted[start:]
        elif edit == 3:
            del corrupted[start:end]
        elif edit == 4:
            corrupted[start:start] = corrupted[start:end]
        elif edit == 5:
            corrupted[start:end] = rng.randbytes(end - start)
        elif edit == 6:
            corrupted[start:end] = bytes(end - start)
        elif edit == 7:
            corrupted[start:] = donor[rng.randrange(len(donor)) :]
        elif edit == 8 and start + 4 <= len(corrupted):
            number = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
            corrupted[start : start + 4] = struct.pack(rng.choice("<>") + "I", number)
    return bytes(corrupted)


def scratch() -> str | None:
    """Folder for temporary files: in memory where the machine has one, which spares the disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
