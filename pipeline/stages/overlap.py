"""Work beside the device's: what comes next is fetched, and what is made put away, while the device computes."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")


def ahead(pairs: Iterable[tuple[K, Callable[[], T]]]) -> Generator[tuple[K, Callable[[], T]]]:
    """The same pairs, but that each call is begun, in a thread, while the one before it is being used.

    One call at a time, in order; what it raises is raised by the call that is handed out. On closing it waits for one
    that is under way.
    """
    with ThreadPoolExecutor(1) as threads:
        before: tuple[K, Callable[[], T]] | None = None
        for name, call in pairs:
            begun = threads.submit(call)
            if before is not None:
                yield before
            wait([begun])  # what it reads from may be closed where the pairs end
            before = name, begun.result
        if before is not None:
            yield before


def mapped(function: Callable[[K], T], items: Iterable[K], *, threads: int) -> Iterator[T]:
    """What a function returns for each item, in order, several at a time; no more items are drawn than are at work."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Behind(contextlib.AbstractContextManager["Behind"]):
    """Calls that are made in a thread, one at a time, in order; on leaving, the last one has ended.

    What one raises is raised by the next call handed over, or on leaving.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def call(self, function: Callable[[], None]) -> None:
        """Hands a call over, as soon as the one before it has ended: what is held in memory is bounded."""
        self._wait()
        self._last = self._threads.submit(function)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __exit__(self, kind: object, *_: object) -> None:
        self._threads.shutdown()
        if kind is None:
            self._wait()
