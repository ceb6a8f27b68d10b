"""What a case of the corpus is, how it is run and judged, and commands of the program as cases call them."""

import contextlib
import io
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from unittest import mock

from jobs import cli
from pipeline.errors import GnpError

# A fault that cannot pass is reported within this time.
LIMIT_S = 10.0

Build = Callable[[Path], object]
T = TypeVar("T", bound=Build)


@dataclass(frozen=True)
class Refusal:
    """One line that names the cause.

    Attributes:
        cause: Regular expression that is found in the line.
    """

    cause: str


@dataclass(frozen=True)
class Case:
    """One odd input.

    Attributes:
        kind: What is odd: `folders`, `images`, `tars`, `labels`, `checkpoints`, `environments`.
        name: The input, in a few words.
        run: Makes the input in an empty folder, gives it to the program, and returns what came out.
        expected: The right value, or a refusal.
    """

    kind: str
    name: str
    run: Build
    expected: object


@dataclass(frozen=True)
class Verdict:
    """How a case ended.

    Attributes:
        fault: What is wrong with it; empty where the outcome is the expected one.
        outcome: The value, or the line.
        seconds: Time that it took.
    """

    fault: str
    outcome: str
    seconds: float


CASES: dict[str, Case] = {}


def case(kind: str, name: str, expected: object) -> Callable[[T], T]:
    """Registers a function as a case: it makes an input in an empty folder and returns what the program made of it."""

    def register(function: T) -> T:
        identity = f"{kind}: {name}"
        assert identity not in CASES, identity
        CASES[identity] = Case(kind, name, function, expected)
        return function

    return register


def judge(one: Case, folder: Path) -> Verdict:
    """Runs a case in an empty folder and compares its outcome with the expected one."""
    started = time.monotonic()
    try:
        outcome: object = one.run(folder)
        line = None
    except (GnpError, CommandError, ValueError, TypeError) as error:
        # From Python, ValueError and TypeError with a line of their own are what callers expect.
        outcome, line = error, str(error)
    except Exception as error:  # whatever else it is, it is a traceback
        return Verdict("a traceback", f"{type(error).__name__}: {error}", time.monotonic() - started)
    seconds = time.monotonic() - started
    return Verdict(_fault(one.expected, outcome, line, seconds), repr(outcome) if line is None else line, seconds)


def _fault(expected: object, outcome: object, line: str | None, seconds: float) -> str:
    if isinstance(expected, Refusal):
        if line is None:
            return f"accepted; wanted is a refusal with {expected.cause!r}"
        if "\n" in line.strip() or not re.search(expected.cause, line):
            return f"wanted is one line with {expected.cause!r}"
        return "" if seconds < LIMIT_S else f"took {seconds:.0f} s to refuse"
    if line is not None:
        return f"refused; wanted is {expected!r}"
    return "" if outcome == expected else f"wanted is {expected!r}"


class CommandError(Exception):
    """A command of the program ended with another exit code than 0; the message is what it wrote to standard error."""


def gnp(*arguments: object) -> str:
    """What a command of the program prints, run in this process.

    Raises:
        CommandError: Its exit code is not 0.
    """
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    with (
        mock.patch.object(sys, "argv", ["gnp", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = cli.run()
        finally:
            signal.signal(signal.SIGTERM, handler)
    if code:
        raise CommandError(err.getvalue().strip())
    return out.getvalue()
