"""How programs end: with an exit code, without waiting for threads, and within seconds of a stop signal.

0 success; 1 incomplete, or a bug; 2 an error that the user can fix; 130 stopped.
"""

import atexit
import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from jobs.streams import prepare_streams
from pipeline.errors import GnpError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# A run has to end within 30 s of a stop signal, whatever it is waiting for.
_STOP_S = 25.0
RESUME_HINT = "committed results are kept: run the same command again to resume"


def end_process(code: int) -> NoReturn:
    """Ends this process with an exit code, right after the exit handlers of Python and Ray.

    A normal exit would wait for threads that wait for a store that is gone; and the destructors of the libraries' C++
    threads sometimes abort a process whose work is done ("terminate called without an active exception", in 2 of 36
    runs of `gnp verify` on a busy machine), which a scheduler would take for a failure.
    """
    atexit._run_exitfuncs()
    try:
        with contextlib.suppress(BrokenPipeError, ValueError):  # the reader has gone, as in `gnp ls | head`
            sys.stdout.flush()
    except OSError as error:  # lost output is no success
        code = code or 2
        sys.stderr.write(f"error: standard output: {error.strerror}\n")
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


def environment_fault(error: Exception) -> str | None:
    """The line for an error of the operating system that a user can fix: a file that cannot be written, a full disk.

    None for any other error.
    """
    if not isinstance(error, OSError) or error.strerror is None:
        return None
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if error.errno in _NO_ROOM:
        return f"{error.strerror}; check the disk of the output, and that of TMPDIR"
    return None


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Ends this process with the exit code of `main`; an error that a user can fix is one line, with exit code 2."""
    prepare_streams()
    try:
        code = main()
    except GnpError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    end_process(code)


@contextlib.contextmanager
def stop_deadline(stop: threading.Event, message: str) -> Iterator[None]:
    """While entered, ends the process with a message and code 130 if the block lasts too long after `stop` is set."""
    left = threading.Event()

    def watch() -> None:
        stop.wait()
        if not left.wait(_STOP_S):
            sys.stderr.write(message + "\n")
            sys.stderr.flush()
            os._exit(130)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()
