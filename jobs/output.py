"""Printing lines and saving figures, for commands and runners."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 shard`, `2,000 shards`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def print_line(console: Console, text: str) -> None:
    """Prints text as it is: without markup, highlighting or line breaks of its own."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def save_figure(path: Path, figure: "Figure", console: Console) -> None:
    """Writes a figure as PNG and prints its path."""
    from pipeline.analysis import drawing

    path.write_bytes(drawing.png(figure))
    print_line(console, str(path))
