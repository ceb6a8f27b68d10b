"""What is seen of a run while it goes on: live on a terminal, elsewhere a line now and then; and a log of its items."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from pipeline.errors import RecipeError
from pipeline.ledger.progress import Made, Tally
from pipeline.ledger.progress import Progress as Counts

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
        self._paces = _Pace(), _Pace()
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
        left_s = self._left_s(counts, tally)
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
        attacked, answered = _rate(tally.attacked, tally.seconds), _rate(tally.scored, tally.seconds, of="answers")
        for task, done, total, rate in (
            (self._attack, counts.attacked, counts.to_attack, attacked),
            (self._score, counts.scored, counts.to_score, answered),
        ):
            self._bars.update(task, completed=done, total=total if known else None, rate=rate)
        said = [
            f"{tally.items - tally.items_left} of {tally.items} items through",
            f"{tally.workers.get('generator', 0)} at attacking, {tally.workers.get('scorer', 0)} at scoring",
            f"{_duration(tally.seconds)} so far",
            *([f"about {_duration(left_s)} left"] if left_s else []),
            *_troubles(tally),
        ]
        self._below = Group("; ".join(said), _table(tally.scored, rows=self._console.height - _OTHER_LINES))

    def _left_s(self, counts: Counts, tally: Tally) -> float | None:
        """Seconds until both stages are through; None where that cannot be said, or nothing is left."""
        attack, score = self._paces
        left = (
            attack.left_s(counts.attacked, counts.to_attack, counts, tally.seconds),
            score.left_s(counts.scored, counts.to_score, counts, tally.seconds),
        )
        known = [each for each in left if each is not None]
        return max(known) if tally.items_left and len(known) == len(left) else None

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


@dataclass
class _Pace:
    """How fast a stage gets on, from when it first did."""

    before: int = -1
    since: tuple[float, int] | None = None

    def left_s(self, done: int, total: int, counts: Counts, seconds: float) -> float | None:
        """Seconds until it is through; shards that are not known count as the known ones. None: it has just begun."""
        expected = total * counts.shards / max(1, counts.shards_known)
        if total and done >= expected:
            return 0.0
        if self.before < 0:
            self.before = done
        if self.since is None and done > self.before:
            self.since = seconds, done
        if self.since is None or done == self.since[1]:
            return None
        began, at = self.since
        return (seconds - began) * (expected - done) / (done - at)


def _rate(made: Made, seconds: float, *, of: str = "images") -> str:
    return f"{made.images / seconds:.3g} {of}/s" if made.images and seconds else ""


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
        (tally.attacked.quarantined, "image", "images", "quarantined"),
        (tally.tries_failed, "try", "tries", "failed"),
        (tally.failed, "item", "items", "given up"),
    )
    yield from (f"{count} {one if count == 1 else many} {what}" for count, one, many, what in counts if count)


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
    """The attack that does best so far on targets other than its source, and its success on each target."""
    rates: dict[tuple[str, str], list[float]] = {}
    for (source, attack, target), counted in scored.counted.items():
        if counted and source != target:
            rates.setdefault((source, attack), []).append(scored.fooled[source, attack, target] / counted)
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
    table = Table(
        "attack",
        "source",
        *map(escape, targets),
        title="success so far, of images that the target gets right when clean",
    )
    for source, attack in pairs[: max(1, rows)]:
        table.add_row(escape(attack), escape(source), *(_share(scored, (source, attack, target)) for target in targets))
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
    """While entered, a line of JSON for each item that a worker is done with goes to the end of a file; `-` is stderr.

    Raises:
        RecipeError: It cannot be written.
    """
    if file is None:
        yield
        return
    handler: logging.Handler
    try:
        handler = logging.StreamHandler() if str(file) == "-" else _Lines(file, encoding="utf-8")
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
