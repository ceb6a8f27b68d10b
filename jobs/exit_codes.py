"""Ending a program: at once, and in time."""

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from pipeline.errors import GnpError

# A run that is told to stop is to have ended within 30 s, whatever it is waiting for.
_PATIENCE_S = 25.0


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code, after what Python and Ray do at exit, and no later.

    What would follow is not wanted. Threads that wait for a store that is gone would be waited for; and the destructors
    of the libraries' C++ threads now and then abort a process whose work is done ("terminate called without an active
    exception", in 2 of 36 runs of `gnp verify` on a busy machine), which a schedule would take for a failure.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a reader that has gone, as of `gnp ls | head`
            stream.flush()
    os._exit(code)


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process with a program's exit code; what a user can mend is one line and 2."""
    try:
        code = main()
    except GnpError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    leave(code)


@contextlib.contextmanager
def in_time(stop: threading.Event, line: str) -> Iterator[None]:
    """While entered, ends the process with a line and code 130 where `stop` is set and it is not left in time."""
    left = threading.Event()

    def watch() -> None:
        stop.wait()
        if not left.wait(_PATIENCE_S):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
            os._exit(130)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()
