"""The typer app that commands register with, and the arguments, options and helpers that they share.

Neither torch nor Ray is imported here, so that `--help` answers at once.
"""

import re
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from jobs.output import save_figure
from jobs.streams import prepare_streams
from pipeline.errors import RecipeError
from pipeline.ledger import slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

app = typer.Typer(
    name="gnp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Transferable adversarial examples at scale: generate them, score how they transfer, read the results.",
)
prepare_streams()
# Without a terminal there is no width to fit into, and tables of ten targets need the space.
console = Console(width=None if sys.stdout.isatty() else 160)

# Arguments and options of several commands.
Store = Annotated[
    str, typer.Argument(help="Store with the results: a folder, or s3://bucket/prefix.", show_default=False)
]
StoreOption = Annotated[
    str, typer.Option("--store", help="Store for the results: a folder, or s3://bucket/prefix.", show_default=False)
]
Recipe = Annotated[Path, typer.Argument(help="A TOML recipe; see jobs/recipes/.", show_default=False)]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster, such as `auto`; default: the one in RAY_ADDRESS, or a new local one."),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Also retry failed items and quarantined images.")]
Denominator = Literal["all", "target", "joint"]
DenominatorOption = Annotated[
    Denominator, typer.Option("--denominator", help="Which images are counted; see `gnp report`.")
]
Figures = Annotated[Path, typer.Option("--out", help="Folder for the figures, one per dataset and source.")]


def interrupt_on_sigterm() -> None:
    """Makes SIGTERM raise KeyboardInterrupt, as Ctrl-C does, before imports that take seconds."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def create_folder(out: Path, option: str = "--out") -> Path:
    """Creates the folder of an option, before the work that will write to it begins.

    Raises:
        RecipeError: It cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{option} {out}: cannot create this folder ({error.strerror})") from error
    return out


def parse_since(text: str, now: float) -> float:
    """Parses `36h`, `7d` or a date and time; returns seconds since 1970.

    Raises:
        RecipeError: The text is none of these, or the time is in the future.
    """
    span = re.fullmatch(r"(\d+(?:\.\d+)?)([hd])", text)
    if span:
        return now - float(span[1]) * {"h": 3600, "d": 86400}[span[2]]
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise RecipeError(f"--since {text}: expected hours (36h), days (7d) or a time (2026-11-01T02:00)") from error
    seconds = time.replace(tzinfo=time.tzinfo or UTC).timestamp()
    if seconds > now:
        raise RecipeError(f"--since {text}: that time is in the future")
    return seconds


def write_figure(out: Path, name: str, figure: "Figure") -> None:
    """Writes a figure as PNG and prints its path."""
    save_figure(out / f"{slug(name)}.png", figure, console)
