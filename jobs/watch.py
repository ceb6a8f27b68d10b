"""What is seen of a run while it goes on: live on a terminal, elsewhere a line now and then; and a log of its items."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from pipeline.errors import RecipeError
from pipeline.progress import Made, Tally
from pipeline.progress import Progress as Counts

# Off a terminal, a run says how far it is at least so often.
_QUIET_S = 300.0
# What the table of success leaves for the rest of the screen.
_OTHER_LINES = 10


class Display:
    """How far a run is, how fast, how well its attacks do, and what failed.

    On a terminal two bars and a table that are kept up to date; elsewhere a line whenever a tenth more is done, or
    `_QUIET_S` have passed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenths, self._said = -1, -math.inf
        self._first: Counts | None = None
        self._below: RenderableType = ""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
        self._bars = Progress(*columns, console=console)
        self._attack = self._bars.add_task("attacked parts", total=None, rate="")
        self._score = self._bars.add_task("result files", total=None, rate="")
        self._live = Live(console=console, get_renderable=self.shown, refresh_per_second=2)

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, counts: Counts, tally: Tally) -> None:
        """Brings the display up to date."""
        self._first = self._first or counts
        left_s = _left_s(self._first, counts, tally.seconds)
        if self._console.is_terminal:
            self._redraw(counts, tally, left_s)
            return
        tenths = 10 * (counts.attacked + counts.scored) // max(1, counts.to_attack + counts.to_score)
        if tenths > self._tenths or time.monotonic() - self._said > _QUIET_S:
            self._tenths, self._said = tenths, time.monotonic()
            self.say(_line(counts, tally, left_s))

    def shown(self) -> RenderableType:
        """What a terminal shows."""
        return Group(self._bars, self._below)

    def _redraw(self, counts: Counts, tally: Tally, left_s: float | None) -> None:
        # While some shards are unread, their parts are not in the totals; a full bar would be a lie.
        known = counts.shards_known == counts.shards
        for task, done, total, made in (
            (self._attack, counts.attacked, counts.to_attack, tally.attacked),
            (self._score, counts.scored, counts.to_score, tally.scored),
        ):
            self._bars.update(task, completed=done, total=total if known else None, rate=_rate(made, tally.seconds))
        said = [
            f"{tally.items - tally.items_left} of {tally.items} items through",
            f"{tally.workers.get('generator', 0)} at attacking, {tally.workers.get('scorer', 0)} at scoring",
            f"{_duration(tally.seconds)} so far",
            *([f"about {_duration(left_s)} left"] if left_s else []),
            *_troubles(tally),
        ]
        self._below = Group("; ".join(said), _table(tally.scored, rows=self._console.height - _OTHER_LINES))

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def _left_s(first: Counts, now: Counts, seconds: float) -> float | None:
    """Seconds until both stages are through at their pace so far; shards that are not known count as the known ones."""
    left = []
    for before, done, total in (
        (first.attacked, now.attacked, now.to_attack),
        (first.scored, now.scored, now.to_score),
    ):
        if done <= before:
            return None
        expected = total * now.shards / now.shards_known
        left.append(seconds * (expected - done) / (done - before))
    return max(left)


def _rate(made: Made, seconds: float) -> str:
    return f"{made.images / seconds:.3g} images/s" if made.images and seconds else ""


def _duration(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.0f} min"
        if seconds > 90
        else f"{seconds:.0f} s"
    )


def _troubles(tally: Tally) -> Iterator[str]:
    counts = (
        (tally.attacked.quarantined, "images quarantined"),
        (tally.tries_failed, "tries failed"),
        (tally.failed, "items given up"),
    )
    yield from (f"{count} {what}" for count, what in counts if count)


def _line(counts: Counts, tally: Tally, left_s: float | None) -> str:
    """How far a run is, in one line."""
    said = [
        f"attacked {counts.attacked}/{counts.to_attack} parts, scored {counts.scored}/{counts.to_score} files, "
        f"{counts.shards_known}/{counts.shards} shards read",
        *filter(None, [_rate(tally.attacked, tally.seconds)]),
        *([f"about {_duration(left_s)} left"] if left_s else []),
        *_strongest(tally.scored),
        *_troubles(tally),
    ]
    return "; ".join(said)


def _strongest(scored: Made) -> Iterator[str]:
    """The attack that does best so far, and its success on each target, of images that are right when clean."""
    rates: dict[tuple[str, str], list[float]] = {}
    for (source, attack, target), counted in scored.counted.items():
        rates.setdefault((source, attack), []).append(scored.fooled[source, attack, target] / max(1, counted))
    if rates:
        source, attack = max(rates, key=lambda pair: sum(rates[pair]) / len(rates[pair]))
        told = [
            f"{target} {_share(scored, (source, attack, target))}"
            for target in sorted({cell[2] for cell in scored.counted if cell[:2] == (source, attack)})
        ]
        yield f"strongest so far, {attack} from {source}: {', '.join(told)}"


def _table(scored: Made, *, rows: int) -> RenderableType:
    """Success so far by attack and target; no more attacks than there is room for."""
    pairs = list(dict.fromkeys(cell[:2] for cell in scored.counted))
    if not pairs:
        return ""
    targets = sorted({target for _, _, target in scored.counted})
    table = Table("attack", "source", *targets, title="success so far, of images that the target gets right when clean")
    for source, attack in pairs[: max(1, rows)]:
        table.add_row(attack, source, *(_share(scored, (source, attack, target)) for target in targets))
    left = len(pairs) - max(1, rows)
    return Group(table, f"and {left} more attacks") if left > 0 else table


def _share(scored: Made, cell: tuple[str, str, str]) -> str:
    fooled, counted = scored.fooled.get(cell, 0), scored.counted.get(cell, 0)
    return f"{fooled / counted:.0%} {fooled}/{counted}" if counted else "–"


class _Lines(logging.FileHandler):
    """Appends to a file; once that fails, says so in one line, and the run goes on without it."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        del record
        if not self._failed:
            self._failed = True
            sys.stderr.write(f"--log {self.baseFilename}: {sys.exc_info()[1]}; the run goes on without some lines\n")


@contextlib.contextmanager
def items_logged(file: Path | None) -> Iterator[None]:
    """While entered, a line of JSON for each item that a worker is done with goes to the end of a file.

    Raises:
        RecipeError: It cannot be written.
    """
    if file is None:
        yield
        return
    try:
        handler = _Lines(file, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"--log {file}: cannot be written ({error.strerror})") from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("gnp.items")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # what could not be written then cannot be now
            handler.close()
