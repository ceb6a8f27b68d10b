"""The exit code and the closing line of `gnp generate`."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from jobs import tables
from jobs.display import Display
from jobs.runners import generate
from pipeline.ledger import UNIT_KINDS, Ledger
from pipeline.ledger.progress import Progress as Counts
from pipeline.ledger.progress import StageTotals, Tally
from pipeline.maintenance import status
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import sample, write_recipe, write_shard

pytestmark = [pytest.mark.usefixtures("ray_on_four_devices"), pytest.mark.timeout(600)]


@pytest.fixture
def recipe(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """Two shards, one of them truncated."""
    write_shard(tmp_path / "in" / "good.tar", [sample(index) for index in range(3)])
    bad = write_shard(tmp_path / "in" / "bad.tar", [sample(index) for index in range(3)])
    bad.write_bytes(bad.read_bytes()[:-10240])
    return write_recipe(tmp_path, tiny_checkpoint, engine="generators = 1")


def run(recipe: Path, capsys: pytest.CaptureFixture[str], **settings: int) -> tuple[int, str, str]:
    output = io.StringIO()
    code = generate.run(
        recipe,
        str(recipe.parent / "store"),
        console=Console(file=output, width=200),
        **settings,  # type: ignore[arg-type]
    )
    return code, output.getvalue(), capsys.readouterr().err


@pytest.mark.journey
def test_failed_items_are_listed_tolerated_skipped_and_retried(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, errors = run(recipe, capsys)
    assert code == 1
    assert "failed: bad from tiny" in errors
    assert "1 of 2 items failed, 0 failed earlier" in output
    code, output, errors = run(recipe, capsys)
    assert code == 1
    assert "failed earlier, not retried: bad from tiny" in errors
    assert "except 1 items that failed earlier; --retry-failed retries them" in output
    assert run(recipe, capsys, max_failed=1)[0] == 0
    code, output, errors = run(recipe, capsys, retry_failed=True)
    assert (code, "failed: bad from" in errors, "(0 images attacked" in output) == (1, True, True)
    shown = io.StringIO()
    statuses = status.status(Ledger(Storage(str(recipe.parent / "store"))))
    tables.print_status(statuses, console=Console(file=shown, width=200))
    assert "incomplete" in shown.getvalue()
    assert "failed after 1 try: bad from tiny" in shown.getvalue()
    write_shard(recipe.parent / "in" / "bad.tar", [sample(index) for index in range(3)])
    code, output, errors = run(recipe, capsys)
    assert (code, errors) == (0, "")
    assert "done: 1 items" in output
    assert "(3 images attacked, 0 quarantined)" in output
    (plan,) = status.status(Ledger(Storage(str(recipe.parent / "store"))))
    assert (plan.complete, plan.failures) == (True, ())


@pytest.mark.journey
def test_packages_of_the_same_names_in_the_working_folder_are_not_imported(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "in" / "bad.tar").unlink()
    for name in ("pipeline", "jobs"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        (tmp_path / "elsewhere" / name / "__init__.py").write_text(
            "raise ImportError('this package must not be imported')"
        )
    program = str(Path(sys.executable).parent / "gnp")
    command = [program, "generate", str(recipe), "--store", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.journey
def test_two_simultaneous_runs_share_the_work_and_both_end(recipe: Path) -> None:
    for number in range(6):
        write_shard(recipe.parent / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(4)])
    store = recipe.parent / "store"
    recipe.write_text(recipe.read_text().replace('"i"', '{ attack = "mi", steps = 150 }'))
    # Each with its own Ray, so that neither waits for the other's workers; one of the shards is unreadable.
    command = [sys.executable, "-m", "jobs", "generate", str(recipe), "--store", str(store)]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    output = [process.communicate(timeout=300) for process in runs]
    assert [process.returncode for process in runs] == [1, 1], output
    assert all(b"failed: bad from tiny" in errors for _, errors in output), output
    ledger = Ledger(Storage(str(store)))
    assert len(list(ledger.list_units("transfer"))) == 7
    data = [stored for folder in ("shards", "results") for stored in ledger.storage.list(folder)]
    assert len(data) == sum(len(list(ledger.list_units(kind))) for kind in UNIT_KINDS), "no object is made twice"


@pytest.mark.journey
def test_parts_that_were_not_tried_are_not_skipped_with_a_failed_part_of_their_shard(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(recipe.parent / "in" / "bad.tar", [sample(index) for index in range(6)])
    (recipe.parent / "in" / "good.tar").unlink()
    recipe.write_text(
        recipe.read_text().replace("generators = 1", "generators = 2").replace("[data]", "[data]\npart_size = 1")
    )
    assert run(recipe, capsys)[0] == 0
    store = Storage(str(recipe.parent / "store"))
    ledger = Ledger(store)
    units = sorted(unit for kind in UNIT_KINDS for unit in ledger.list_units(kind))
    # An original of the first item is damaged; the results of the second item are missing, as if it was never tried.
    damaged = next(unit for unit in units if unit.kind == "original" and unit.part.index == 2)
    whole = store.get(ledger.read_marker(damaged).object)
    store.put(ledger.read_marker(damaged).object, b"")
    missing = [unit for unit in units if unit.attack and (unit.part.index % 2 or unit.part.index == 2)]
    store.delete([unit.marker_key for unit in missing])
    code, _, errors = run(recipe, capsys)
    assert code == 1
    assert "failed: bad parts 2+6n" in errors, "one item for each part"
    left = {unit.part.index for unit in units} - {unit.part.index for unit in ledger.list_units("transfer")}
    assert left == {2}, "the other parts are done"
    store.delete([unit.marker_key for unit in missing if unit.part.index == 5])
    code, _, errors = run(recipe, capsys, max_failed=1)
    assert (code, "failed earlier, not retried: bad parts 2+6n" in errors) == (0, True)
    assert {unit.part.index for unit in ledger.list_units("transfer")} == {0, 1, 3, 4, 5}
    store.put(ledger.read_marker(damaged).object, whole)
    assert run(recipe, capsys, retry_failed=True)[0] == 0
    assert len(list(ledger.list_units("transfer"))) == 6


def test_a_run_whose_labels_no_target_predicts_says_so(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "in" / "bad.tar").unlink()
    shifted = [{**sample(index), "cls": b"9"} for index in range(20)]  # the untrained network predicts another class
    write_shard(recipe.parent / "in" / "good.tar", shifted)
    code, _, errors = run(recipe, capsys)
    assert code == 0
    assert errors.startswith("warning: no target classifies clean images better than by chance (tiny 0 of 20 correct)")
    assert len(errors.splitlines()) == 1


def test_without_a_terminal_a_long_run_prints_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    display = Display(Console(file=output, width=200))
    tally = Tally(1, 1, {}, StageTotals(), StageTotals(), 0, 0, 1.0)
    seen = ((0, 0), (1, 1), (59, 2), (61, 3), (62, 20), (63, 21), (700, 22), (900, 23), (1001, 24))
    for now, attacked in seen:
        monkeypatch.setattr("time.monotonic", lambda now=now: 1000.0 + now)
        counts = Counts(attacked=attacked, to_attack=100, scored=0, to_score=100, shards_known=1, shards=1)
        display.update(counts, replace(tally, seconds=now))
    assert [line.split(" parts")[0] for line in output.getvalue().splitlines()] == [
        "attacked 0/100",
        "attacked 3/100",
        "attacked 20/100",
        "attacked 22/100",
        "attacked 24/100",
    ]
