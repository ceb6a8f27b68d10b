"""The main job: recipe → plan → engine, with progress, and one closing line that says how it ended."""

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline import config, engine, plan
from pipeline.plan import Progress as Counts


def run(recipe: Path, store: str, *, console: Console, limit: int | None = None, address: str | None = None) -> int:
    """Generates and scores; returns the exit code: 0 if everything is committed, 1 if items failed.

    Raises:
        GnpError: The run could not start.
    """
    loaded = config.load(recipe)
    console.print("[dim]finding shards, loading every model once[/dim]")
    planned = plan.resolve(loaded.job(limit=limit))
    with _Bars(console) as bars:
        outcome = engine.run(planned, store, pools=loaded.engine, address=address, on_progress=bars.show)
    for name, reason in outcome.failed.items():
        sys.stderr.write(f"failed: {name}: {reason}\n")
    if not outcome.items:
        said = f"nothing to do: {store} holds everything that this recipe makes"
    elif outcome.failed:
        said = f"{len(outcome.failed)} of {outcome.items} items failed; the rest is committed; run again to retry"
    else:
        said = f"done: {outcome.items} items in {outcome.seconds:.0f} s"
    images = f"{outcome.usable} images, {outcome.quarantined} quarantined"
    console.print(f"{said} ({images})", markup=False, highlight=False, soft_wrap=True)
    if not outcome.usable:
        sys.stderr.write("failed: no image could be used; see the recipe's fraction, preparation and classes\n")
    return 1 if outcome.failed or not outcome.usable else 0


class _Bars:
    """Two bars on a terminal; elsewhere a line whenever a tenth more is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenths = -1
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._attack = self._progress.add_task("attacked parts", total=None)
        self._score = self._progress.add_task("result files", total=None)

    def show(self, counts: Counts) -> None:
        """Brings the display up to date."""
        # While some shards are unread, their parts are not in the totals; a full bar would be a lie.
        known = counts.shards_known == counts.shards
        self._progress.update(self._attack, completed=counts.attacked, total=counts.to_attack if known else None)
        self._progress.update(self._score, completed=counts.scored, total=counts.to_score if known else None)
        tenths = 10 * (counts.attacked + counts.scored) // max(1, counts.to_attack + counts.to_score)
        if not self._console.is_terminal and tenths > self._tenths:
            self._tenths = tenths
            self._console.print(
                f"attacked {counts.attacked}/{counts.to_attack} parts, scored {counts.scored}/{counts.to_score} files, "
                f"{counts.shards_known}/{counts.shards} shards read"
            )

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
