"""Calling functions in a child process.

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
from typing import Any, TypeVar

from pipeline.errors import CapacityError, GnpError

T = TypeVar("T")

# Forked, a child would inherit locks that Ray's and the store's threads hold.
_SPAWN = multiprocessing.get_context("spawn")
# Wait for a process that may be starting, before it is killed.
_START_TIMEOUT_S = 5.0


class ChildProcess:
    """A process that calls functions, one after another: each finds imported what those before it imported.

    It starts with the first call. As a context manager, it ends when the block does.
    """

    def __init__(self) -> None:
        self._connection, self._child_end = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(self._child_end,), daemon=True)
        self._started: Future[None] | None = None

    def begin(self, function: Callable[[], T], *, task: str, timeout_minutes: float) -> Callable[[], T]:
        """Begins a call; returns the function that waits for its result, to be called before the next `begin`.

        Args:
            function: A module-level function, or a `functools.partial` of one; it, its result and its exceptions are
                pickled.
            task: Description of the work, for messages: `loading the models`.
            timeout_minutes: Time limit.

        Raises, as does the function that is returned:
            CapacityError: The process died, or took longer.
            Exception: Whatever `function` raises; a defect carries the traceback of its process as a note.
        """
        if self._started is None:
            self._started = Future[None]()
            # In a thread: a signal raises in the main thread, and would leave a process that is half started.
            threading.Thread(target=_start, args=(self._process, self._started), daemon=True).start()
            self._started.result()
            self._child_end.close()
        try:
            self._connection.send(function)
        except (BrokenPipeError, ConnectionResetError):
            raise self._death(task) from None
        return functools.partial(self._wait, task, timeout_minutes)

    def call(self, function: Callable[[], T], *, task: str, timeout_minutes: float) -> T:
        """Calls a function and returns its result; see `begin`."""
        return self.begin(function, task=task, timeout_minutes=timeout_minutes)()

    def _wait(self, task: str, timeout_minutes: float) -> Any:
        try:
            if not self._connection.poll(60 * timeout_minutes):
                raise CapacityError(f"{task} took longer than {timeout_minutes:g} minutes")
            error, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._death(task) from None
        if error is not None:
            raise error
        return value

    def _death(self, task: str) -> CapacityError:
        self._process.join()
        return CapacityError(f"{task}: its process died ({_describe_exit(self._process.exitcode or 0)})")

    def __enter__(self) -> "ChildProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self._started is not None:
            with contextlib.suppress(TimeoutError):  # after a signal, the thread may not have started the process yet
                self._started.exception(_START_TIMEOUT_S)
            if self._process.pid is not None:
                self._process.kill()
                self._process.join()
        self._child_end.close()
        self._connection.close()


def run_in_child_process(function: Callable[[], T], *, task: str, timeout_minutes: float) -> T:
    """Calls a function in a child process of its own and returns its result; see `ChildProcess.begin`."""
    with ChildProcess() as child:
        return child.call(function, task=task, timeout_minutes=timeout_minutes)


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


def _serve(connection: Connection) -> None:
    """Runs in the child: receives functions, and sends the exception or the result of each."""
    end_with_parent()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the caller is gone
        while True:
            connection.send(_call(connection.recv()))


def _call(function: Callable[[], object]) -> tuple[Exception | None, object]:
    """The exception that a function raises, or its result."""
    try:
        return None, function()
    except GnpError as known:
        return known, None
    except Exception as defect:
        defect.add_note(traceback.format_exc())
        return defect, None


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
