"""Background threads: the next input is read, and the last result is stored, while the device computes."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, Protocol, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Prefetched(Generic[K, T]):
    """An iterator of (key, result) in which each call runs in a thread while the result before it is used.

    One call runs at a time, in order; the first starts at once. `result()` waits, and raises what the call raised.

    Args:
        calls: (key, call) pairs; drawn one ahead of the pair that is handed out.
    """

    def __init__(self, calls: Iterator[tuple[K, Callable[[], T]]]) -> None:
        self._calls = calls
        self._threads = ThreadPoolExecutor(1)
        self._started: tuple[K, Future[T]] | None = None
        try:
            self._start_next()
        except BaseException:
            self.close()
            raise

    def _start_next(self) -> None:
        self._started = None
        for key, call in self._calls:
            self._started = key, self._threads.submit(call)
            return

    @property
    def exhausted(self) -> bool:
        """Whether the pair handed out is the last, and nothing more is read."""
        return self._started is None

    def __iter__(self) -> Iterator[tuple[K, Callable[[], T]]]:
        while self._started is not None:
            key, call = self._started
            wait([call])  # drawing the next pair may close the file that this call reads
            self._start_next()
            yield key, call.result

    def close(self) -> None:
        """Waits for the running call and draws no more."""
        self._threads.shutdown()
        self._calls = iter(())  # drops the generator, which then closes what it has opened


class Closeable(Protocol):
    """Anything with a `close` method."""

    def close(self) -> None:
        """Frees what it holds."""


C = TypeVar("C", bound=Closeable)


class NextResult(Generic[K, C]):
    """One result that will probably be needed next, computed in a thread; one that is never taken is closed."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1)
        self._lock = threading.Lock()
        self._started: tuple[K, Future[C]] | None = None

    def start(self, key: K, function: Callable[[], C]) -> None:
        """Computes a result in the thread, after closing the one before it if that was not taken."""
        with self._lock:
            if self._started is not None:
                self._threads.submit(_close, self._started[1])
            self._started = key, self._threads.submit(function)

    def take(self, key: K) -> C | None:
        """Waits for the result of a key and hands it over; None if none was started or it failed."""
        with self._lock:
            if self._started is None or self._started[0] != key:
                return None
            future = self._started[1]
            self._started = None
        return None if future.exception() else future.result()


def _close(future: Future[C]) -> None:
    if not future.exception():
        future.result().close()


def map_in_order(function: Callable[[K], T], items: Iterable[K], *, threads: int) -> Iterator[T]:
    """Maps a function over items in several threads, in order; draws at most one item per thread in advance."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class BackgroundCalls(contextlib.AbstractContextManager["BackgroundCalls"]):
    """Calls that run in a thread, one at a time, in order; leaving the context waits for the last one.

    An error of a call is raised by the next `submit`, or on leaving.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def submit(self, function: Callable[[], None]) -> None:
        """Starts a call once the one before it has ended, which bounds what is held in memory."""
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
