"""`make terminal-picture`: the terminal display of the demo, half way through the run."""

import io
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from jobs.demo import FOLDER, RECIPE, assets
from jobs.display import Display
from jobs.exit_codes import end_process
from pipeline import generate
from pipeline.ledger.progress import Progress, Tally

PATH = Path("docs/terminal.svg")


def main() -> None:
    """Runs the demo's recipe into a temporary store, and draws the display at the time when half was scored."""
    assets.prepare(FOLDER)
    updates: list[tuple[Progress, Tally]] = []
    with TemporaryDirectory() as store:
        generate(RECIPE, store, on_progress=lambda *update: updates.append(update))
    first = updates[0]
    half = next(update for update in updates if 2 * update[0].scored >= update[0].to_score > 0)
    console = Console(file=io.StringIO(), record=True, width=130, height=40, force_terminal=True)
    display = Display(console)
    display.update(*first)
    display.update(*half)
    console.print(display.renderable())
    svg = console.export_svg(title="gnp generate")
    # Without the web fonts that viewers would download.
    PATH.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")
    sys.stdout.write(f"{PATH}\n")


if __name__ == "__main__":
    main()
    end_process(0)
