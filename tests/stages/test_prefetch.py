"""What is done beside the device's work: begun early, ended in order, and never lost."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from pipeline.stages.prefetch import Ahead, Behind, Next, mapped
from tests.samples import until


def test_the_next_call_runs_while_this_one_is_used() -> None:
    begun: list[int] = []

    def call(number: int) -> int:
        begun.append(number)
        return number * number

    taken: list[tuple[str, int]] = []
    for name, result in Ahead((str(number), partial(call, number)) for number in range(4)):
        until(lambda: len(begun) == min(4, len(taken) + 2))
        taken.append((name, result()))
    assert taken == [("0", 0), ("1", 1), ("2", 4), ("3", 9)]
    assert begun == [0, 1, 2, 3]


def test_pairs_end_after_the_last_call() -> None:
    """As a file that the calls read from is closed where they end."""
    events: list[str] = []

    def pairs() -> Iterator[tuple[int, Callable[[], None]]]:
        for number in range(3):
            yield number, partial(slow, number)
        events.append("closed")

    def slow(number: int) -> None:
        time.sleep(0.05)
        events.append(f"read {number}")

    for _, result in Ahead(pairs()):
        result()
    assert events == ["read 0", "read 1", "read 2", "closed"]


def test_what_a_call_raises_is_its_own() -> None:
    calls = [("a", partial(int, "1")), ("b", partial(int, "one")), ("c", partial(int, "3"))]
    results = [result for _, result in Ahead(iter(calls))]
    assert (results[0](), results[2]()) == (1, 3)
    with pytest.raises(ValueError, match="one"):
        results[1]()


def test_closing_waits_for_the_call_that_is_under_way() -> None:
    going, ended = threading.Event(), threading.Event()

    def second() -> None:
        going.set()
        time.sleep(0.2)
        ended.set()

    pairs = Ahead(iter([("first", lambda: None), ("second", second)]))
    next(iter(pairs))
    assert going.wait(20)
    pairs.close()
    assert ended.is_set()


class Kept:
    def __init__(self, name: str) -> None:
        self.name, self.closed = name, threading.Event()

    def close(self) -> None:
        self.closed.set()


def test_what_is_next_is_had_by_its_name_and_else_closed() -> None:
    made, following = {name: Kept(name) for name in "ab"}, Next[str, Kept]()
    assert following.take("a") is None
    following.begin("a", lambda: made["a"])
    assert following.take("b") is None
    following.begin("b", lambda: made["b"])
    assert following.take("a") is None
    assert made["a"].closed.wait(20)
    assert following.take("b") is made["b"]
    assert following.take("b") is None
    assert not made["b"].closed.is_set()


def test_what_could_not_be_made_ahead_is_nothing() -> None:
    def fail() -> Kept:
        raise OSError("disk full")

    following = Next[str, Kept]()
    following.begin("a", fail)
    assert following.take("a") is None
    following.begin("a", fail)
    following.begin("b", lambda: Kept("b"))
    kept = following.take("b")
    assert kept is not None
    assert kept.name == "b"


@pytest.mark.parametrize("threads", [1, 3])
def test_a_map_keeps_order_and_draws_no_more_than_it_works_at(threads: int) -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            yield number

    for taken, result in enumerate(mapped(lambda number: number + 100, items(), threads=threads)):
        assert result == taken + 100
        assert len(drawn) <= taken + 1 + threads
    assert drawn == list(range(20))


def test_calls_behind_end_in_order_and_before_one_goes_on() -> None:
    ended: list[int] = []

    def call(number: int) -> None:
        time.sleep(0.01)
        ended.append(number)

    with Behind() as behind:
        for number in range(5):
            behind.call(partial(call, number))
            assert len(ended) >= number  # one is under way at most
    assert ended == list(range(5))


def test_what_a_call_behind_raises_comes_out() -> None:
    def fail() -> None:
        raise OSError("disk full")

    def run(*calls: Callable[[], None], error: Exception | None = None) -> None:
        with Behind() as behind:
            for call in calls:
                behind.call(call)
            if error is not None:
                raise error

    with pytest.raises(OSError, match="disk full"):
        run(fail)
    with pytest.raises(OSError, match="disk full"):
        run(fail, lambda: None)
    with pytest.raises(KeyError):  # what ended the block is not hidden by it
        run(fail, error=KeyError())
