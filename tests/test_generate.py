"""The exit code and the closing line of `gnp generate`."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from jobs import generate, tables
from pipeline import status
from pipeline.ledger import Ledger
from pipeline.storage import Storage
from tests.samples import CLASSES, SIDE, sample, write_shard

pytestmark = [pytest.mark.usefixtures("ray_on_four_devices"), pytest.mark.timeout(600)]


@pytest.fixture
def recipe(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """Two shards, one of them truncated."""
    write_shard(tmp_path / "in" / "good.tar", [sample(index) for index in range(3)])
    bad = write_shard(tmp_path / "in" / "bad.tar", [sample(index) for index in range(3)])
    bad.write_bytes(bad.read_bytes()[:-10240])
    network = f'model = "test_resnet"\ncheckpoint = "{tiny_checkpoint}"\ninput_size = {SIDE}\n'
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'attacks = ["i"]\n[data]\nname = "tiny"\nshards = "{tmp_path}/in/*.tar"\nclasses = {CLASSES}\n'
        f"preparation = {{ resize = {SIDE}, crop = {SIDE} }}\n[[sources]]\n{network}[[targets]]\n{network}"
        "[engine]\ngenerators = 1\n"
    )
    return path


def run(recipe: Path, capsys: pytest.CaptureFixture[str], **settings: int) -> tuple[int, str, str]:
    said = io.StringIO()
    code = generate.run(
        recipe,
        str(recipe.parent / "store"),
        console=Console(file=said, width=200),
        **settings,  # type: ignore[arg-type]
    )
    return code, said.getvalue(), capsys.readouterr().err


def test_what_failed_is_listed_tolerated_passed_over_and_retried(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, errors = run(recipe, capsys)
    assert code == 1
    assert "failed: bad from test_resnet" in errors
    assert "1 of 2 items failed, 0 failed earlier" in said
    code, said, errors = run(recipe, capsys)
    assert code == 1
    assert "failed earlier, not tried again: bad from test_resnet" in errors
    assert "but for 1 that failed earlier; --retry-failed tries them again" in said
    assert run(recipe, capsys, max_failed=1)[0] == 0
    code, said, errors = run(recipe, capsys, retry_failed=True)
    assert (code, "failed: bad from" in errors, "(0 images attacked" in said) == (1, True, True)
    shown = io.StringIO()
    found = status.status(Ledger(Storage(str(recipe.parent / "store"))))
    tables.show_status(found, console=Console(file=shown, width=200))
    assert "incomplete" in shown.getvalue()
    assert "failed after 3 tries: bad from test_resnet" in shown.getvalue()
    write_shard(recipe.parent / "in" / "bad.tar", [sample(index) for index in range(3)])
    code, said, errors = run(recipe, capsys)
    assert (code, errors) == (0, "")
    assert "done: 1 items" in said
    assert "(3 images attacked, 0 quarantined)" in said
    (plan,) = status.status(Ledger(Storage(str(recipe.parent / "store"))))
    assert (plan.complete, plan.failures) == (True, ())
