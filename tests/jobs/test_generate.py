"""The exit code and the closing line of `gnp generate`."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from jobs import tables
from jobs.display import Display
from jobs.runners import generate
from pipeline.ledger import KINDS, Ledger
from pipeline.ledger.progress import Made, Tally
from pipeline.ledger.progress import Progress as Counts
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
    said = io.StringIO()
    code = generate.run(
        recipe,
        str(recipe.parent / "store"),
        console=Console(file=said, width=200),
        **settings,  # type: ignore[arg-type]
    )
    return code, said.getvalue(), capsys.readouterr().err


@pytest.mark.journey
def test_what_failed_is_listed_tolerated_passed_over_and_retried(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, errors = run(recipe, capsys)
    assert code == 1
    assert "failed: bad from tiny" in errors
    assert "1 of 2 items failed, 0 failed earlier" in said
    code, said, errors = run(recipe, capsys)
    assert code == 1
    assert "failed earlier, not tried again: bad from tiny" in errors
    assert "but for 1 that failed earlier; --retry-failed tries them again" in said
    assert run(recipe, capsys, max_failed=1)[0] == 0
    code, said, errors = run(recipe, capsys, retry_failed=True)
    assert (code, "failed: bad from" in errors, "(0 images attacked" in said) == (1, True, True)
    shown = io.StringIO()
    found = status.status(Ledger(Storage(str(recipe.parent / "store"))))
    tables.show_status(found, console=Console(file=shown, width=200))
    assert "incomplete" in shown.getvalue()
    assert "failed after 3 tries: bad from tiny" in shown.getvalue()
    write_shard(recipe.parent / "in" / "bad.tar", [sample(index) for index in range(3)])
    code, said, errors = run(recipe, capsys)
    assert (code, errors) == (0, "")
    assert "done: 1 items" in said
    assert "(3 images attacked, 0 quarantined)" in said
    (plan,) = status.status(Ledger(Storage(str(recipe.parent / "store"))))
    assert (plan.complete, plan.failures) == (True, ())


def test_a_folder_that_holds_other_code_of_our_names_changes_nothing(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "in" / "bad.tar").unlink()
    for name in ("pipeline", "jobs"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        (tmp_path / "elsewhere" / name / "__init__.py").write_text("raise ImportError('not the code that was meant')")
    program = str(Path(sys.executable).parent / "gnp")
    command = [program, "generate", str(recipe), "--store", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.journey
def test_two_runs_side_by_side_share_the_work_and_both_end(recipe: Path) -> None:
    for number in range(6):
        write_shard(recipe.parent / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(4)])
    store = recipe.parent / "store"
    recipe.write_text(recipe.read_text().replace('"i"', '{ attack = "mi", steps = 150 }'))
    # Each with a Ray of its own, so that neither waits for the other's workers; neither can read one of the shards.
    command = [sys.executable, "-m", "jobs", "generate", str(recipe), "--store", str(store)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [1, 1], said
    assert all(b"failed: bad from tiny" in errors for _, errors in said), said
    ledger = Ledger(Storage(str(store)))
    assert len(list(ledger.units("transfer"))) == 7
    data = [stored for folder in ("shards", "results") for stored in ledger.storage.list(folder)]
    assert len(data) == sum(len(list(ledger.units(kind))) for kind in KINDS), "nothing is made twice"


@pytest.mark.journey
def test_what_was_not_tried_is_not_passed_over_with_its_shard(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(recipe.parent / "in" / "bad.tar", [sample(index) for index in range(6)])
    (recipe.parent / "in" / "good.tar").unlink()
    recipe.write_text(
        recipe.read_text().replace("generators = 1", "generators = 2").replace("[data]", "[data]\npart_size = 1")
    )
    assert run(recipe, capsys)[0] == 0
    store = Storage(str(recipe.parent / "store"))
    ledger = Ledger(store)
    units = sorted(unit for kind in KINDS for unit in ledger.units(kind))
    # One original of the first item is damaged; the second item's results are gone, as if it had never been tried.
    damaged = next(unit for unit in units if unit.kind == "original" and unit.part.index == 2)
    whole = store.get(ledger.marker(damaged).object)
    store.put(ledger.marker(damaged).object, b"")
    gone = [unit for unit in units if unit.attack and (unit.part.index % 2 or unit.part.index == 2)]
    store.delete([unit.marker for unit in gone])
    code, _, errors = run(recipe, capsys)
    assert code == 1
    assert "failed: bad parts 0+2n" in errors
    left = {unit.part.index for unit in units} - {unit.part.index for unit in ledger.units("transfer")}
    assert left == {2}, "the other parts are done"
    store.delete([unit.marker for unit in gone if unit.part.index == 5])
    code, _, errors = run(recipe, capsys, max_failed=1)
    assert (code, "failed earlier, not tried again: bad parts 0+2n" in errors) == (0, True)
    assert {unit.part.index for unit in ledger.units("transfer")} == {0, 1, 3, 4, 5}
    store.put(ledger.marker(damaged).object, whole)
    assert run(recipe, capsys, retry_failed=True)[0] == 0
    assert len(list(ledger.units("transfer"))) == 6


def test_off_a_terminal_a_long_run_says_how_far_it_is_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    display = Display(Console(file=said, width=200))
    tally = Tally(1, 1, {}, Made(), Made(), 0, 0, 1.0)
    for now, attacked in ((1000.0, 0), (1001.0, 1), (1200.0, 2), (1301.0, 3), (1302.0, 20), (1303.0, 21)):
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        display.show(Counts(attacked=attacked, to_attack=100, scored=0, to_score=100, shards_known=1, shards=1), tally)
    assert [line.split(" parts")[0] for line in said.getvalue().splitlines()] == [
        "attacked 0/100",
        "attacked 3/100",
        "attacked 20/100",
    ]
