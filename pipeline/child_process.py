"""Calling a function in a child process.

A driver has to stay small for days, so it calls everything that needs torch or loads models in a child process, whose
memory is freed when it ends. A checkpoint that crashes its reader, or a disk that never answers, then is an error with
a reason.
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
# Wait for a process that may be starting, before it is killed.
_START_TIMEOUT_S = 5.0


def run_in_child_process(function: Callable[[], T], *, task: str, timeout_minutes: float) -> T:
    """Calls a function in a child process and returns its result.

    Args:
        function: A module-level function, or a `functools.partial` of one; it, its result and its exceptions are
            pickled.
        task: Description of the work, for messages: `loading the models`.
        timeout_minutes: Time limit.

    Raises:
        CapacityError: The process died, or took longer.
        Exception: Whatever the function raises; a defect carries the traceback of its process as a note.
    """
    receiver, sender = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_call, args=(sender, function), daemon=True)
    started = Future[None]()
    try:
        # In a thread: a signal raises in the main thread, and would leave a process with half of its arguments.
        threading.Thread(target=_start, args=(process, started), daemon=True).start()
        started.result()
        sender.close()
        if not receiver.poll(60 * timeout_minutes):
            raise CapacityError(f"{task} took longer than {timeout_minutes:g} minutes")
        error, value = receiver.recv()
    except EOFError:
        process.join()
        raise CapacityError(f"{task}: its process died ({_describe_exit(process.exitcode or 0)})") from None
    finally:
        with contextlib.suppress(TimeoutError):  # after a signal, the thread may not have started the process yet
            started.exception(_START_TIMEOUT_S)
        if process.pid is not None:
            process.kill()
            process.join()
        receiver.close()
    if error is not None:
        raise error
    return cast(T, value)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"killed by signal {-code}" + ("; out of memory?" if code == -signal.SIGKILL else "")


def _start(process: BaseProcess, started: "Future[None]") -> None:
    """Starts a process that ignores Ctrl-C: a terminal sends it to the whole group, and the caller handles it."""
    try:
        resource_tracker.ensure_running()  # before the mask: starting the tracker unblocks the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
    except BaseException as error:
        started.set_exception(error)
    else:
        started.set_result(None)


def _call(sender: Connection, function: Callable[[], object]) -> None:
    """Runs in the child: sends the function's exception or its result."""
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
    with contextlib.suppress(BrokenPipeError):  # the caller is gone
        sender.send((error, value))


@functools.cache
def end_with_parent() -> None:
    """Makes this process end when its parent process does.

    After its parent was killed, nobody needs its result, and it might hang.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
