"""Work beside the device's: what comes next is fetched, and what is made put away, while the device computes."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
K = TypeVar("K")


class Ahead(Generic[K, T]):
    """Names and calls: each call is begun, in a thread, while the one before it is being used; the first at once.

    One call at a time, in order; what it raises is raised by the call that is handed out.

    Args:
        pairs: Drawn from one ahead of what is handed out.
    """

    def __init__(self, pairs: Iterator[tuple[K, Callable[[], T]]]) -> None:
        self._pairs, self._threads = pairs, ThreadPoolExecutor(1)
        self._begun: tuple[K, Future[T]] | None = None
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        self._begun = None
        for name, call in self._pairs:
            self._begun = name, self._threads.submit(call)
            return

    @property
    def ended(self) -> bool:
        """Whether what is handed out is the last, so that nothing is read any more."""
        return self._begun is None

    def __iter__(self) -> Iterator[tuple[K, Callable[[], T]]]:
        while self._begun is not None:
            name, call = self._begun
            wait([call])  # what it reads from may be closed where the pairs end
            self._begin()
            yield name, call.result

    def close(self) -> None:
        """Waits for a call that is under way, and draws no more."""
        self._threads.shutdown()
        self._pairs = iter(())  # a generator ends, and closes what it has opened, when nobody holds it any more


class Closeable(Protocol):
    """What holds on to something until it is closed."""

    def close(self) -> None:
        """Lets it go."""


C = TypeVar("C", bound=Closeable)


class Next(Generic[K, C]):
    """One thing that is likely to be wanted next, made in a thread; what nobody has taken is closed before another."""

    def __init__(self) -> None:
        self._threads, self._lock = ThreadPoolExecutor(1), threading.Lock()
        self._begun: tuple[K, Future[C]] | None = None

    def begin(self, name: K, function: Callable[[], C]) -> None:
        """Begins to make it."""
        with self._lock:
            if self._begun is not None:
                self._threads.submit(_close, self._begun[1])
            self._begun = name, self._threads.submit(function)

    def take(self, name: K) -> C | None:
        """What was made under a name, once it is; None if nothing was, or it failed."""
        with self._lock:
            if self._begun is None or self._begun[0] != name:
                return None
            (_, made), self._begun = self._begun, None
        return None if made.exception() else made.result()


def _close(made: Future[C]) -> None:
    if not made.exception():
        made.result().close()


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
