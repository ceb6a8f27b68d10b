"""The program `gnp`, also `python -m jobs`: parses the command line, runs a command, reports errors."""

import logging
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from jobs.app import app

# isort: off
from jobs.commands import (  # noqa: F401  # importing a module registers its command, in the order of `gnp --help`
    generate,
    train,
    score,
    shards,
    finalize,
    gc,
    report,
    compare,
    ablation,
    curvature,
    landscape,
    show,
    status,
    verify,
    ls,
    plan,
)

# isort: on
from jobs.exit_codes import RESUME_HINT, end_process, environment_fault
from pipeline.errors import GnpError
from pipeline.version import VERSION

_debug = False


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"gnp {VERSION}\n")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Given before the command: show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Transferable adversarial examples at scale: generate them, score how they transfer, read the results."""
    del version
    global _debug
    _debug = debug


def main() -> NoReturn:
    """Runs the program and ends the process with its exit code."""
    end_process(run())


def run() -> int:
    """Runs the program; returns its exit code. Prints an error that a user can fix as one line, with exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except SystemExit as ended:  # typer always ends with it
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            sys.stderr.write(f"stopped; {RESUME_HINT}\n")
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except GnpError as error:
        if _debug:
            traceback.print_exc()
        sys.stderr.writelines(f"error: {line}\n" for line in str(error).splitlines())
        return 2
    except BrokenPipeError:  # the reader of standard output has gone
        return 1
    except Exception as error:  # if it propagated, Python would skip `end_process` and wait for threads that never end
        fault = environment_fault(error)
        if fault is None or _debug:
            logging.getLogger(__name__).exception("this is a bug in gnp" if fault is None else "")
        if fault is None:
            return 1
        sys.stderr.write(f"error: {fault}\n")
        return 2
    return 0
