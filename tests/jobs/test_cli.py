import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jobs import cli
from pipeline.data.shards import read_samples
from tests.conftest import ROOT
from tests.samples import CLASSES, SIDE, jpeg, sample, write_recipe, write_shard

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gnp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process; returns its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gnp", *map(str, arguments)])
        code = cli.run()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    "command", [[], ["generate"], ["report"], ["compare"], ["ablation"], ["verify"], ["ls"], ["shards"]]
)
def test_help_describes_a_command(gnp: Run, command: list[str]) -> None:
    code, out, _ = gnp(*command, "--help")
    assert code == 0
    assert len(out.splitlines()) > 10


def test_help_needs_no_torch() -> None:
    code = "import sys, jobs.cli; sys.exit(int('torch' in sys.modules or 'ray' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("command", ["report", "verify", "ls", "status", "gc", "finalize"])
def test_a_missing_store_is_reported_in_one_line(gnp: Run, tmp_path: Path, command: str) -> None:
    code, _, err = gnp(command, tmp_path / "typo")
    assert (code, err) == (2, f"error: {tmp_path}/typo: no such folder\n")
    assert not (tmp_path / "typo").exists()


def test_debug_shows_the_traceback(gnp: Run, tmp_path: Path) -> None:
    code, _, err = gnp("--debug", "report", tmp_path / "typo")
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith(f"error: {tmp_path}/typo: no such folder\n")
    assert "Traceback" not in gnp("report", tmp_path / "typo")[2]


def test_a_faulty_recipe_is_refused_before_the_store_is_touched(gnp: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('sources = ["resnet50"]\n')
    code, _, err = gnp("generate", recipe, "--store", tmp_path / "store")
    assert code == 2
    assert "targets: missing" in err
    assert "Traceback" not in err
    assert not (tmp_path / "store").exists()


def test_missing_shards_are_reported_in_one_line(gnp: Run, tmp_path: Path, demo_assets: Path) -> None:
    recipe = tmp_path / "r.toml"
    text = (ROOT / "jobs/recipes/demo.toml").read_text().replace("build/demo/shards/photographs-", "nowhere/x-")
    recipe.write_text(text.replace("build/demo", str(demo_assets)))
    code, _, err = gnp("generate", recipe, "--store", tmp_path / "store")
    assert code == 2
    assert err.startswith("error:")
    assert "nowhere: no such folder" in err
    assert len(err.splitlines()) == 1


def test_weights_that_cannot_be_downloaded_are_reported_in_one_line(tmp_path: Path, demo_assets: Path) -> None:
    recipe = tmp_path / "imagenet.toml"
    text = (ROOT / "jobs/recipes/imagenet.toml").read_text()
    shards = "s3://imagenet/imagenet1k-validation-{0000..0063}.tar"
    assert shards in text
    recipe.write_text(text.replace(shards, f"{demo_assets}/shards/photographs-000000.tar"))
    # Offline, with an empty cache.
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "jobs", "generate", str(recipe), "--store", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: resnet50.tv_in1k: its pretrained weights cannot be loaded")
    assert len(done.stderr.splitlines()) == 1
    assert "give a checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_without_usable_images_fails_with_a_message(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    network = f'model = "test_resnet"\ncheckpoint = "{tiny_checkpoint}"\ninput_size = {SIDE}\n'
    (tmp_path / "r.toml").write_text(
        f'attacks = ["mi"]\n[data]\nname = "none"\nshards = "{tmp_path}/in/s.tar"\nclasses = {CLASSES}\n'
        f"fraction = 1e-9\n[[sources]]\n{network}[[targets]]\n{network}"
    )
    command = [sys.executable, "-m", "jobs", "generate", str(tmp_path / "r.toml"), "--store", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "failed: no image could be used" in done.stderr
    assert "(0 images attacked, 0 quarantined)" in done.stdout


def test_a_folder_is_packed_into_shards(gnp: Run, tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "dog/2.jpg", "dog/notes.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(0))
    code, out, _ = gnp("shards", tmp_path / "in", tmp_path / "out", "--name", "pets")
    assert code == 0
    assert "pets-000000.tar" in out
    assert "left out 1, not an image" in out
    assert len(list(read_samples((tmp_path / "out/pets-000000.tar").read_bytes(), name="x", classes=CLASSES))) == 2
    code, _, err = gnp("shards", tmp_path / "none", tmp_path / "out")
    assert (code, err) == (2, f"error: {tmp_path}/none: no such folder\n")


@pytest.mark.parametrize("command", ["report", "verify", "ls", "status", "gc", "finalize"])
def test_a_folder_that_is_not_a_store_is_refused(gnp: Run, tmp_path: Path, command: str) -> None:
    code, out, err = gnp(command, tmp_path)
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path}: no run has written here; check the address, or run generate first\n"


def test_a_missing_cluster_is_reported_in_one_line(tmp_path: Path, demo_assets: Path) -> None:
    recipe = tmp_path / "r.toml"
    text = (ROOT / "jobs/recipes/demo.toml").read_text()
    recipe.write_text(text.replace("build/demo", str(demo_assets)))
    # In its own process: this one may be connected to a Ray already.
    command = [
        sys.executable,
        "-m",
        "jobs",
        "generate",
        str(recipe),
        "--store",
        str(tmp_path / "s"),
        "--address",
        "foo",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: no Ray at foo" in done.stderr
    assert "Traceback" not in done.stderr


def ray_is_starting(process: "subprocess.Popen[str]") -> bool:
    """Waits for the first processes of Ray."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended in the meantime
                if child.name() in ("gcs_server", "raylet"):
                    return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", ["resolving", "starting Ray"])
def test_a_run_that_is_stopped_at_its_start_prints_how_to_resume(
    number: signal.Signals, phase: str, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    recipe = write_recipe(tmp_path, tiny_checkpoint)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", "generate", str(recipe), "--store", str(tmp_path / "store")],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert "finding shards" in process.stdout.readline()
    assert phase == "resolving" or ray_is_starting(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("stopped; committed results are kept: run the same command again to resume\n")
    assert len(errors.splitlines()) == 1


def test_a_command_works_with_closed_streams(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m jobs status '{tmp_path}' >&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=ROOT, check=False).returncode == 2
