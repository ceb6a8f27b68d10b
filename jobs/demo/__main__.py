"""`make demo`: `gnp generate` on real photographs and weights, then the report as a table and a page, and a picture."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from jobs.demo import FOLDER, RECIPE, assets
from jobs.exit_codes import run_and_exit
from jobs.runners import generate


def main() -> int:
    """Runs the demo; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default=str(FOLDER / "store"), help="store for the results")
    store = parser.parse_args().store
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print("[bold]1[/bold]  real weights and photographs from Python packages")
    assets.prepare(FOLDER)
    console.print(f"[bold]2[/bold]  gnp generate {RECIPE.relative_to(Path.cwd())} --store {store}")
    code = generate.run(RECIPE, store, console=console)
    if not code:
        from jobs.demo.results import show  # imports torch, seconds that the run need not wait for

        show(store, console)
    return code


if __name__ == "__main__":
    run_and_exit(main)
