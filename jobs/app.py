"""The program's commands hang on this: `app`, and what they share.

Imports of torch and Ray are left to the commands that need them, so that `--help` answers at once.
"""

import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

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
for _name in ("stdout", "stderr"):  # closed by whoever started this
    if getattr(sys, _name) is None:
        setattr(sys, _name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
# Off a terminal there is no width to fit into; tables of ten targets need the room.
console = Console(width=None if sys.stdout.isatty() else 160)

Store = Annotated[str, typer.Argument(help="Where results lie: a folder, or s3://bucket/prefix.", show_default=False)]
Denominator = Literal["all", "target", "joint"]


def folder_at(out: Path, option: str = "--out") -> Path:
    """The folder of an option, made before hours of work end at it.

    Raises:
        RecipeError: It cannot be one.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{option} {out}: cannot be made a folder ({error.strerror})") from error
    return out


def since_when(text: str, now: float) -> float:
    """`36h`, `7d` or a date and time, in seconds since 1970.

    Raises:
        RecipeError: It is neither, or has not come yet.
    """
    span = re.fullmatch(r"(\d+(?:\.\d+)?)([hd])", text)
    if span:
        return now - float(span[1]) * {"h": 3600, "d": 86400}[span[2]]
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise RecipeError(f"--since {text}: expected hours (36h), days (7d) or a time (2026-11-01T02:00)") from error
    seconds = when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    if seconds > now:
        raise RecipeError(f"--since {text}: that time has not come yet")
    return seconds


def write(out: Path, name: str, figure: "Figure") -> None:
    """A figure, and where it lies."""
    from pipeline.analysis import drawing

    path = out / f"{slug(name)}.png"
    path.write_bytes(drawing.png(figure))
    sys.stdout.write(f"{path}\n")
