"""Faults for histories of the ledger: cut-off writers, wrong clocks, reads without threads."""

import time
from typing import Self

import pytest


class Cut(Exception):  # noqa: N818  # not an error: the process is gone
    """A writer's process ends here."""


def cut_off(*_: object, **__: object) -> bool:
    raise Cut


class skewed:  # noqa: N801  # used as a context
    """A client machine whose clock is wrong."""

    def __init__(self, by_s: float) -> None:
        self.by_s, self.patch = by_s, pytest.MonkeyPatch()

    def __enter__(self) -> None:
        real = time.time
        self.patch.setattr(time, "time", lambda: real() + self.by_s)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


class SequentialPool:
    """Reads in sequence what the ledger reads in parallel."""

    def __init__(self, readers: int) -> None:
        del readers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    map = staticmethod(map)
