"""Background threads of the stages: started early, ended in order, errors and results never lost."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from pipeline.stages.prefetch import BackgroundCalls, NextResult, Prefetched, map_in_order
from tests.samples import wait_until


def test_the_next_call_runs_while_a_result_is_used() -> None:
    started: list[int] = []

    def square(number: int) -> int:
        started.append(number)
        return number * number

    results: list[tuple[str, int]] = []
    for key, result in Prefetched((str(number), partial(square, number)) for number in range(4)):
        wait_until(lambda: len(started) == min(4, len(results) + 2))
        results.append((key, result()))
    assert results == [("0", 0), ("1", 1), ("2", 4), ("3", 9)]
    assert started == [0, 1, 2, 3]


def test_the_iterator_of_calls_ends_after_the_last_call() -> None:
    """It may then close the file that the calls read."""
    events: list[str] = []

    def calls() -> Iterator[tuple[int, Callable[[], None]]]:
        for number in range(3):
            yield number, partial(read_slowly, number)
        events.append("closed")

    def read_slowly(number: int) -> None:
        time.sleep(0.05)
        events.append(f"read {number}")

    for _, result in Prefetched(calls()):
        result()
    assert events == ["read 0", "read 1", "read 2", "closed"]


def test_an_error_is_raised_by_the_result_of_its_own_call() -> None:
    calls = [("a", partial(int, "1")), ("b", partial(int, "one")), ("c", partial(int, "3"))]
    results = [result for _, result in Prefetched(iter(calls))]
    assert (results[0](), results[2]()) == (1, 3)
    with pytest.raises(ValueError, match="one"):
        results[1]()


def test_closing_waits_for_the_running_call() -> None:
    started, ended = threading.Event(), threading.Event()

    def second() -> None:
        started.set()
        time.sleep(0.2)
        ended.set()

    prefetched = Prefetched(iter([("first", lambda: None), ("second", second)]))
    next(iter(prefetched))
    assert started.wait(20)
    prefetched.close()
    assert ended.is_set()


class Resource:
    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


def test_the_next_result_is_taken_by_its_key_or_closed() -> None:
    resources = {name: Resource(name) for name in "ab"}
    next_result = NextResult[str, Resource]()
    assert next_result.take("a") is None
    next_result.start("a", lambda: resources["a"])
    assert next_result.take("b") is None
    next_result.start("b", lambda: resources["b"])
    assert next_result.take("a") is None
    assert resources["a"].closed.wait(20)
    assert next_result.take("b") is resources["b"]
    assert next_result.take("b") is None
    assert not resources["b"].closed.is_set()


def test_a_next_result_that_failed_is_none() -> None:
    def fail() -> Resource:
        raise OSError("disk full")

    next_result = NextResult[str, Resource]()
    next_result.start("a", fail)
    assert next_result.take("a") is None
    next_result.start("a", fail)
    next_result.start("b", lambda: Resource("b"))
    resource = next_result.take("b")
    assert resource is not None
    assert resource.name == "b"


@pytest.mark.parametrize("threads", [1, 3])
def test_a_map_keeps_the_order_and_draws_one_item_per_thread_in_advance(threads: int) -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            yield number

    for index, result in enumerate(map_in_order(lambda number: number + 100, items(), threads=threads)):
        assert result == index + 100
        assert len(drawn) <= index + 1 + threads
    assert drawn == list(range(20))


def test_background_calls_run_in_order_and_end_before_the_context_does() -> None:
    ended: list[int] = []

    def call(number: int) -> None:
        time.sleep(0.01)
        ended.append(number)

    with BackgroundCalls() as calls:
        for number in range(5):
            calls.submit(partial(call, number))
            assert len(ended) >= number  # at most one is running
    assert ended == list(range(5))


def test_an_error_of_a_background_call_is_raised() -> None:
    def fail() -> None:
        raise OSError("disk full")

    def run(*functions: Callable[[], None], error: Exception | None = None) -> None:
        with BackgroundCalls() as calls:
            for function in functions:
                calls.submit(function)
            if error is not None:
                raise error

    with pytest.raises(OSError, match="disk full"):
        run(fail)
    with pytest.raises(OSError, match="disk full"):
        run(fail, lambda: None)
    with pytest.raises(KeyError):  # it does not hide the error that ended the context
        run(fail, error=KeyError())
