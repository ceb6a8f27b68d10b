"""Progress of a run: live bars and a table on a terminal, a line now and then elsewhere; and the log of its items."""

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
from pipeline.ledger.progress import Progress as Counts
from pipeline.ledger.progress import StageTotals, Tally

# Longest time between two progress lines, where there is no terminal: at first, while one sees whether all is well,
# and later.
_FIRST_S, _FIRST_INTERVAL_S, _LINE_INTERVAL_S = 600.0, 60.0, 300.0
# Lines of the screen that the table of success rates leaves for all else.
_OTHER_LINES = 10


class Display:
    """Progress of a run: parts and files done, pace, time left, success rates so far and failures.

    On a terminal, two bars and a table that are updated in place; elsewhere, a line whenever another tenth is done, or
    a minute has passed (after ten minutes, five).
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenths = -1
        self._last_line_s = -math.inf
        self._attack_pace = _Pace()
        self._score_pace = _Pace()
        self._below_bars: RenderableType = ""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
        self._bars = Progress(*columns, console=console)
        self._attack_bar = self._bars.add_task("attacked parts", total=None, rate="")
        self._score_bar = self._bars.add_task("result files", total=None, rate="")
        self._live = Live(console=console, get_renderable=self.renderable, refresh_per_second=2)

    def print_line(self, line: str) -> None:
        """Prints a line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(self, counts: Counts, tally: Tally) -> None:
        """Redraws the bars and the table; without a terminal, prints a line if one is due."""
        left_s = self._left_s(counts, tally)
        if self._console.is_terminal:
            self._redraw(counts, tally, left_s)
            return
        tenths = 10 * (counts.attacked + counts.scored) // max(1, counts.to_attack + counts.to_score)
        interval_s = _FIRST_INTERVAL_S if tally.seconds < _FIRST_S else _LINE_INTERVAL_S
        if tenths > self._tenths or time.monotonic() - self._last_line_s > interval_s:
            self._tenths = tenths
            self._last_line_s = time.monotonic()
            self.print_line(_line(counts, tally, left_s))

    def renderable(self) -> RenderableType:
        """The bars, and the table below them."""
        return Group(self._bars, self._below_bars)

    def _redraw(self, counts: Counts, tally: Tally, left_s: float | None) -> None:
        # Parts of unread shards are not in the totals yet, so a bar would look full too early.
        known = counts.shards_known == counts.shards
        attack_rate = _rate(tally.attacked, tally.seconds)
        score_rate = _rate(tally.scored, tally.seconds, unit="answers")
        for bar, done, total, rate in (
            (self._attack_bar, counts.attacked, counts.to_attack, attack_rate),
            (self._score_bar, counts.scored, counts.to_score, score_rate),
        ):
            self._bars.update(bar, completed=done, total=total if known else None, rate=rate)
        status = [
            f"{tally.items - tally.items_left} of {tally.items} items done",
            f"workers: {tally.workers.get('generator', 0)} attacking, {tally.workers.get('scorer', 0)} scoring",
            f"{_duration(tally.seconds)} so far",
            *([f"about {_duration(left_s)} left"] if left_s else []),
            *_problems(tally),
        ]
        table = _success_table(tally.scored, rows=self._console.height - _OTHER_LINES)
        self._below_bars = Group("; ".join(status), table)

    def _left_s(self, counts: Counts, tally: Tally) -> float | None:
        """Seconds until both stages are done; None where a pace is unknown, or nothing is left."""
        stages_left_s = (
            self._attack_pace.left_s(counts.attacked, counts.to_attack, counts, tally.seconds),
            self._score_pace.left_s(counts.scored, counts.to_score, counts, tally.seconds),
        )
        known = [left_s for left_s in stages_left_s if left_s is not None]
        return max(known) if tally.items_left and len(known) == len(stages_left_s) else None

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


@dataclass
class _Pace:
    """Pace of a stage, measured from the first progress that the display saw.

    Attributes:
        initial: What was done at the first call; -1 before it.
        start: Seconds and count at the first progress.
    """

    initial: int = -1
    start: tuple[float, int] | None = None

    def left_s(self, done: int, total: int, counts: Counts, seconds: float) -> float | None:
        """Seconds until the stage is done, if unread shards are as large as the others; None before any progress."""
        expected = total * counts.shards / max(1, counts.shards_known)
        if total and done >= expected:
            return 0.0
        if self.initial < 0:
            self.initial = done
        if self.start is None and done > self.initial:
            self.start = seconds, done
        if self.start is None or done == self.start[1]:
            return None
        start_s, start_count = self.start
        return (seconds - start_s) * (expected - done) / (done - start_count)


def _rate(made: StageTotals, seconds: float, *, unit: str = "images") -> str:
    return f"{made.images / seconds:.3g} {unit}/s" if made.images and seconds else ""


def _duration(seconds: float) -> str:
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def _problems(tally: Tally) -> Iterator[str]:
    counts = (
        (tally.attacked.quarantined, "image", "images", "quarantined"),
        (tally.tries_failed, "try", "tries", "failed"),
        (tally.failed, "item", "items", "given up"),
    )
    yield from (f"{count} {one if count == 1 else many} {verb}" for count, one, many, verb in counts if count)


def _line(counts: Counts, tally: Tally, left_s: float | None) -> str:
    """The progress of a run in one line."""
    done = f"attacked {counts.attacked}/{counts.to_attack} parts, scored {counts.scored}/{counts.to_score} files"
    some = f"of {counts.shards_known}/{counts.shards} shards"
    if not counts.shards_known:
        done, some = f"0/{counts.shards} shards read", "their parts are not counted yet"
    pieces = [
        done if counts.shards_known == counts.shards else f"{done}, {some}",
        *filter(None, [_rate(tally.attacked, tally.seconds)]),
        *([f"about {_duration(left_s)} left"] if left_s else []),
        *_strongest(tally.scored),
        *_problems(tally),
    ]
    return "; ".join(pieces)


def _strongest(scored: StageTotals) -> Iterator[str]:
    """Yields the attack with the highest mean success on targets other than its source, with its rates."""
    rates: dict[tuple[str, str], list[float]] = {}
    for (source, attack, target), counted in scored.eligible.items():
        if counted and source != target:
            rates.setdefault((source, attack), []).append(scored.fooled[source, attack, target] / counted)
    if rates:
        source, attack = max(rates, key=lambda pair: sum(rates[pair]) / len(rates[pair]))
        rates_by_target = [
            f"{target} {_share(scored, (source, attack, target))}"
            for target in sorted({cell[2] for cell in scored.eligible if cell[:2] == (source, attack)})
        ]
        yield f"strongest so far, {attack} from {source}: {', '.join(rates_by_target)}"


def _success_table(scored: StageTotals, *, rows: int) -> RenderableType:
    """Success so far by attack and target, of at most `rows` attacks."""
    pairs = list(dict.fromkeys(cell[:2] for cell in scored.eligible))
    if not pairs:
        return ""
    targets = sorted({target for _, _, target in scored.eligible})
    table = Table(
        "attack",
        "source",
        *map(escape, targets),
        title="success so far, on images that the target classifies correctly when clean",
    )
    for source, attack in pairs[: max(1, rows)]:
        table.add_row(escape(attack), escape(source), *(_share(scored, (source, attack, target)) for target in targets))
    omitted = len(pairs) - max(1, rows)
    return Group(table, f"and {omitted} more attacks") if omitted > 0 else table


def _share(scored: StageTotals, cell: tuple[str, str, str]) -> str:
    fooled, counted = scored.fooled.get(cell, 0), scored.eligible.get(cell, 0)
    return f"{fooled / counted:.0%} {fooled}/{counted}" if counted else "–"


class _TolerantFileHandler(logging.FileHandler):
    """Appends to a file; if writing fails, prints one warning, and the run goes on."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        del record
        if not self._failed:
            self._failed = True
            sys.stderr.write(f"--log {self.baseFilename}: {sys.exc_info()[1]}; the run goes on without some lines\n")


@contextlib.contextmanager
def item_log(file: Path | None) -> Iterator[None]:
    """While entered, appends a line of JSON to a file for every item that a worker has finished; `-` is stderr.

    Raises:
        RecipeError: The file cannot be written.
    """
    if file is None:
        yield
        return
    handler: logging.Handler
    try:
        handler = logging.StreamHandler() if str(file) == "-" else _TolerantFileHandler(file, encoding="utf-8")
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
        with contextlib.suppress(OSError):  # closing writes again what could not be written
            handler.close()
