"""The command line: one program, `gnp` or `python -m jobs`."""

import logging
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from jobs.app import app
from jobs.commands import (  # noqa: F401  # importing a module registers its command
    ablation,
    compare,
    curvature,
    finalize,
    gc,
    generate,
    landscape,
    ls,
    plan,
    report,
    score,
    shards,
    show,
    status,
    train,
    verify,
)
from jobs.exit_codes import leave
from pipeline.errors import GnpError

_debug = False


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Before the command: of what goes wrong, also show the traceback.")
    ] = False,
) -> None:
    """Transferable adversarial examples at scale: generate them, score how they transfer, read the results."""
    global _debug
    _debug = debug


def main() -> NoReturn:
    """Runs the program, and ends the process with its exit code."""
    leave(run())


def run() -> int:
    """Runs the program; returns its exit code. What a user can mend ends in one line and 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except SystemExit as ended:  # how typer ends, always
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            sys.stderr.write("stopped; what is committed stands: run the same command again to go on\n")
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except GnpError as error:
        if _debug:
            traceback.print_exc()
        sys.stderr.writelines(f"error: {line}\n" for line in str(error).splitlines())
        return 2
    except Exception:  # shown whole; let through, it would end past `leave`, waiting for threads without end
        logging.getLogger(__name__).exception("this is a defect of gnp")
        return 1
    return 0
