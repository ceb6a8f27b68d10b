"""The progress display and its lines, and the log of items."""

import io
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from jobs import display as display_module
from jobs.display import Display, _Pace, item_log
from pipeline.data.sample import ShardFile
from pipeline.engine.accounting import log_item
from pipeline.errors import RecipeError
from pipeline.ledger.progress import Progress as Counts
from pipeline.ledger.progress import StageTotals, Tally
from pipeline.plan.outline import Item, ShardSelection

SCORED = StageTotals(
    eligible={("a", "i", "one"): 20, ("a", "mi", "one"): 20, ("a", "mi", "two"): 10, ("a", "i", "two"): 0},
    fooled={("a", "i", "one"): 5, ("a", "mi", "one"): 15, ("a", "mi", "two"): 5, ("a", "i", "two"): 0},
)
TALLY = Tally(
    items=4,
    items_left=2,
    workers={"generator": 2, "scorer": 1},
    attacked=StageTotals(parts=6, images=300, quarantined=3),
    scored=SCORED,
    tries_failed=2,
    failed=1,
    seconds=100.0,
)


def counts(attacked: int, scored: int, *, known: int = 4) -> Counts:
    return Counts(attacked, 20, scored, 40, known, 4)


def test_a_line_has_progress_pace_strongest_attack_and_failures() -> None:
    output = io.StringIO()
    display = Display(Console(file=output, width=80))
    display.update(counts(0, 0), TALLY)
    display.update(counts(10, 8), TALLY)
    assert output.getvalue().splitlines()[-1] == (
        "attacked 10/20 parts, scored 8/40 files; 3 images/s; "
        "strongest so far, mi from a: one 75% 15/20, two 50% 5/10; "
        "3 images quarantined; 2 tries failed; 1 item given up"
    )


def test_a_line_has_no_total_that_is_not_known() -> None:
    output = io.StringIO()
    begun = replace(TALLY, attacked=StageTotals(), scored=StageTotals(), tries_failed=0, failed=0)
    for known in (Counts(0, 0, 0, 0, 0, 4), Counts(0, 10, 0, 20, 2, 4)):
        Display(Console(file=output, width=80)).update(known, begun)
    assert output.getvalue().splitlines() == [
        "0/4 shards read, their parts are not counted yet",
        "attacked 0/10 parts, scored 0/20 files, of 2/4 shards",
    ]


def test_time_left_assumes_that_unread_shards_are_as_large_as_the_others() -> None:
    pace = _Pace()
    # Half of the shards are known: 20 of 40 parts. After the first part, 9 took 60 s.
    assert pace.left_s(0, 20, counts(0, 0, known=2), 5.0) is None
    assert pace.left_s(1, 20, counts(1, 0, known=2), 40.0) is None
    assert pace.left_s(10, 20, counts(10, 0, known=2), 100.0) == pytest.approx(60 * 30 / 9)


def test_time_left_is_that_of_the_unfinished_stage() -> None:
    display = Display(Console(file=io.StringIO()))
    assert display._left_s(counts(20, 10), replace(TALLY, seconds=0.0)) is None
    assert display._left_s(counts(20, 20), replace(TALLY, seconds=20.0)) is None
    assert display._left_s(counts(20, 30), replace(TALLY, seconds=40.0)) == pytest.approx(20)
    assert display._left_s(counts(20, 39), replace(TALLY, seconds=60.0, items_left=0)) is None, "given up"


def test_the_strongest_attack_is_determined_on_targets_other_than_the_source() -> None:
    cells = {("a", "i", "a"): 4, ("a", "mi", "a"): 4, ("a", "i", "b"): 4, ("a", "mi", "b"): 4, ("a", "mi", "c"): 0}
    fooled = {("a", "i", "a"): 4, ("a", "mi", "a"): 0, ("a", "i", "b"): 1, ("a", "mi", "b"): 2, ("a", "mi", "c"): 0}
    (output,) = display_module._strongest(StageTotals(eligible=cells, fooled=fooled))
    assert output == "strongest so far, mi from a: a 0% 0/4, b 50% 2/4, c –"


def test_names_are_not_read_as_markup() -> None:
    names = ["gnp+mi[gnp.beta=0.4,steps=10]", "gnp+mi[gnp.beta=0.8,steps=10]", "y[/b]"]
    cells = {("a[/b]", name, "one[x]"): 10 for name in names}
    output = io.StringIO()
    console = Console(file=output, width=160, height=30, force_terminal=True)
    with Display(console) as display:
        display.update(counts(1, 1), replace(TALLY, scored=StageTotals(eligible=cells, fooled=dict.fromkeys(cells, 1))))
    shown = Text.from_ansi(output.getvalue()).plain
    assert all(name in shown for name in [*names, "a[/b]", "one[x]"])


def test_on_a_terminal_success_is_shown_in_a_table() -> None:
    output = io.StringIO()
    console = Console(file=output, width=120, height=40, force_terminal=True)
    with Display(console) as display:
        display.update(counts(0, 0), TALLY)
        display.update(counts(10, 8), TALLY)
    shown = Text.from_ansi(output.getvalue()).plain
    for piece in ("attacked parts", "10/20", "8/40", "3 images/s", "2 attacking, 1 scoring", "75% 15/20", "–"):
        assert piece in shown


def test_the_table_shows_only_as_many_attacks_as_fit() -> None:
    cells = {("a", f"attack-{number}", "one"): 10 for number in range(50)}
    output = io.StringIO()
    console = Console(file=output, width=120, height=20, force_terminal=True)
    display = Display(console)
    display.update(
        counts(1, 1), Tally(**{**vars(TALLY), "scored": StageTotals(eligible=cells, fooled=dict.fromkeys(cells, 1))})
    )
    console.print(display._below_bars)
    shown = Text.from_ansi(output.getvalue()).plain
    assert "attack-9" in shown
    assert "attack-10" not in shown
    assert "and 40 more attacks" in shown


def test_the_log_has_a_line_of_json_per_item(tmp_path: Path) -> None:
    item = Item(ShardSelection(ShardFile("file:///s.tar", "s", 1, "v"), None), "a-1", 0, 1)
    fields = {"run": "r", "end": "done", "reason": "", "seconds": 1.0}
    log_item("generator", item, totals=StageTotals(), **fields)  # type: ignore[arg-type]  # no log is open
    with item_log(tmp_path / "items.jsonl"):
        log_item("scorer", item, totals=SCORED, **fields)  # type: ignore[arg-type]
        log_item("generator", item, totals=StageTotals(1, 2, 3, {"gradient": 4.0}), attempt=2, **fields)  # type: ignore[arg-type]
    first, second = map(json.loads, (tmp_path / "items.jsonl").read_text().splitlines())
    assert {"source": "a", "attack": "mi", "target": "one", "fooled": 15, "of": 20} in first["success"]
    assert (second["stage"], second["item"], second["attempt"]) == ("generator", item.name, 2)
    assert (second["parts"], second["images"], second["quarantined"], second["phases"]) == (1, 2, 3, {"gradient": 4.0})
    assert not logging.getLogger("gnp.items").handlers


def test_a_log_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(RecipeError, match=r"--log .*nowhere/x: cannot be written \(No such file or directory\)"),
        item_log(tmp_path / "nowhere" / "x"),
    ):
        pass


def test_a_full_disk_stops_the_log_but_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    item = Item(ShardSelection(ShardFile("file:///s.tar", "s", 1, "v"), None), "a-1", 0, 1)
    with item_log(Path("/dev/full")):
        for _ in range(3):
            log_item("generator", item, run="r", end="done", reason="", seconds=1.0, totals=StageTotals())
    output = capsys.readouterr().err
    assert output == "--log /dev/full: [Errno 28] No space left on device; the run goes on without some lines\n"


def test_the_log_can_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    item = Item(ShardSelection(ShardFile("file:///s.tar", "s", 1, "v"), None), "a-1", 0, 1)
    with item_log(Path("-")):
        log_item("generator", item, run="r", end="done", reason="", seconds=1.0, totals=StageTotals())
    assert json.loads(capsys.readouterr().err)["end"] == "done"
