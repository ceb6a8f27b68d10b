"""`make terminal-picture`: what a run of the demo shows on a terminal, half way."""

import io
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from jobs.demo import FOLDER, RECIPE, assets
from jobs.display import Display
from jobs.exit_codes import leave
from pipeline import generate
from pipeline.ledger.progress import Progress, Tally

PATH = Path("docs/terminal.svg")


def main() -> None:
    """Runs the demo's recipe into a store that is thrown away, and draws what was shown when half was scored."""
    assets.prepare(FOLDER)
    seen: list[tuple[Progress, Tally]] = []
    with TemporaryDirectory() as store:
        generate(RECIPE, store, on_progress=lambda *both: seen.append(both))
    first, half = seen[0], next(both for both in seen if 2 * both[0].scored >= both[0].to_score > 0)
    console = Console(file=io.StringIO(), record=True, width=130, height=40, force_terminal=True)
    display = Display(console)
    display.show(*first)
    display.show(*half)
    console.print(display.shown())
    drawn = console.export_svg(title="gnp generate")
    # Its fonts would be fetched from elsewhere; whoever looks at it has others.
    PATH.write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL), encoding="utf-8")
    sys.stdout.write(f"{PATH}\n")


if __name__ == "__main__":
    main()
    leave(0)
