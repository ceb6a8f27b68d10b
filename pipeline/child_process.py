"""A function called in a process of its own.

A driver calls so whatever takes torch or loads models, for it is to stay small for days: the memory goes back with the
process. A checkpoint that crashes its reader, or a disk that never answers, is then an error with a reason.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar, cast

from pipeline.errors import CapacityError, GnpError

T = TypeVar("T")

# Forked, a child would inherit locks that Ray's and the store's threads hold.
_SPAWN = multiprocessing.get_context("spawn")
# How long a process that may be starting is waited for, to be ended.
_START_S = 5.0


def isolated(function: Callable[[], T], *, what: str, minutes: float) -> T:
    """What a function returns.

    Args:
        function: A module's own, or a `functools.partial` of one; it, what it returns and what it raises are pickled.
        what: What it does, for messages: `loading the models`.
        minutes: How long it may take.

    Raises:
        CapacityError: Its process died, or took longer.
        Exception: Whatever the function raises; a defect bears the traceback of its process as a note.
    """
    here, there = _SPAWN.Pipe(duplex=False)
    process, started = _SPAWN.Process(target=_call, args=(there, function), daemon=True), Future[None]()
    try:
        # In a thread: what a signal raises in the main one would leave a process that was told half of what to do.
        threading.Thread(target=_start, args=(process, started), daemon=True).start()
        started.result()
        there.close()
        if not here.poll(60 * minutes):
            raise CapacityError(f"{what} took longer than {minutes:g} minutes")
        error, value = here.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        how += "; out of memory?" if code == -signal.SIGKILL else ""
        raise CapacityError(f"{what}: its process died ({how})") from None
    finally:
        with contextlib.suppress(TimeoutError):  # a signal may have come between: then it is not known to have started
            started.exception(_START_S)
        if process.pid is not None:
            process.kill()
            process.join()
        here.close()
    if error is not None:
        raise error
    return cast(T, value)


def _start(process: BaseProcess, started: "Future[None]") -> None:
    """Starts a process that Ctrl-C does not reach: a terminal sends it to all, and the caller says what comes of it."""
    try:
        resource_tracker.ensure_running()  # first, for when it starts, it lets the signal through again
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
    except BaseException as error:
        started.set_exception(error)
    else:
        started.set_result(None)


def _call(there: Connection, function: Callable[[], object]) -> None:
    end_with_parent()
    error: Exception | None = None
    value = None
    try:
        value = function()
    except GnpError as known:
        error = known
    except Exception as defect:
        defect.add_note(traceback.format_exc())
        error = defect
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        there.send((error, value))


@functools.cache
def end_with_parent() -> None:
    """Has this process end when the one that started it does, however that ends.

    What a process that was killed has asked for is wanted no more, and might hang.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
