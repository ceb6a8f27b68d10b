"""Every row of docs/errors.md: a command that fails so prints exactly that line."""

import gzip
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs import cli
from pipeline.ledger import Ledger
from pipeline.maintenance import finalize
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import attack, jpeg, make_plan, sample, tiny_job, write_recipe, write_shard, write_training_recipe
from tests.stages.runs import run_stages

ROW = re.compile(r"^\| `(?P<line>[^`]+)` \| (?P<code>\d) \| ")


@dataclass(frozen=True)
class Setup:
    """A folder with a shard in `in`, a recipe for it, and a store with results of two attacks."""

    folder: Path
    checkpoint: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def network(self) -> str:
        return f'model = "test_resnet"\ncheckpoint = "{self.checkpoint}"'

    def edited(self, old: str, new: str, *, times: int = -1) -> Path:
        text = self.recipe.read_text()
        assert old in text
        path = self.folder / "altered.toml"
        path.write_text(text.replace(old, new, times))
        return path

    def generate(self, recipe: Path, *options: object) -> list[object]:
        return ["generate", recipe, "--store", self.folder / "new", *options]


@pytest.fixture
def setup(tmp_path: Path, tiny_checkpoint: Path) -> Setup:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(3)])
    write_recipe(tmp_path, tiny_checkpoint, engine="generators = 1")
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("i"), attack("mi"))))
    ledger = Ledger(Storage(str(tmp_path / "store"), create=True))
    ledger.record_plan(planned.to_record())
    run_stages(planned, ledger)
    return Setup(tmp_path, tiny_checkpoint)


def truncated_shard(setup: Setup) -> list[object]:
    shard = setup.folder / "in" / "s.tar"
    (setup.folder / "in" / "t.tar").write_bytes(shard.read_bytes())
    shard.write_bytes(shard.read_bytes()[:3000])
    return setup.generate(setup.recipe)


def no_target_class(setup: Setup) -> list[object]:
    write_shard(setup.folder / "in" / "t.tar", [{**sample(0), "target": b"1"}])
    return setup.generate(setup.edited('"i"', '{ attack = "mi", target_class = "shard" }'))


def damaged_result(setup: Setup) -> list[object]:
    result = next((setup.folder / "store" / "results" / "transfer").rglob("*.parquet"))
    result.write_bytes(result.read_bytes()[:-1] + b"x")
    return ["report", setup.folder / "store"]


def incomplete_store(setup: Setup) -> list[object]:
    next((setup.folder / "store" / "markers" / "transfer").rglob("*.json")).unlink()
    return ["finalize", setup.folder / "store"]


def zipped_shard(setup: Setup) -> list[object]:
    (setup.folder / "in" / "s.tar").rename(setup.folder / "in" / "s.tar.xz")
    return setup.generate(setup.edited("*.tar", "s.tar.xz"))


def wrong_class_count(setup: Setup) -> list[object]:
    return setup.generate(setup.edited("classes = 10", "classes = 11"))


def pack_classes(setup: Setup, *names: str) -> list[object]:
    for name in names:
        (setup.folder / "photos" / name).mkdir(parents=True)
        (setup.folder / "photos" / name / "1.jpg").write_bytes(jpeg(0))
    return ["shards", setup.folder / "photos", setup.folder / "out"]


def other_classes(setup: Setup) -> list[object]:
    (setup.folder / "out").mkdir()
    (setup.folder / "out" / "classes.json").write_text('{"cat": 1}')
    return pack_classes(setup, "cat")


def weights(setup: Setup, *, bias: float = 0.0) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_file(setup.checkpoint)
    state["fc.bias"][0] = bias
    return state


def other_weights(setup: Setup, contents: object) -> list[object]:
    torch.save(contents, setup.folder / "other.pth")
    return setup.generate(setup.edited(str(setup.checkpoint), f"{setup.folder}/other.pth"))


def existing_shards(setup: Setup) -> list[object]:
    (setup.folder / "out").mkdir()
    (setup.folder / "out" / "images-000000.tar").touch()
    return pack_classes(setup, "cat")


def no_labels(setup: Setup) -> list[object]:
    (setup.folder / "photos").mkdir()
    (setup.folder / "photos" / "labels.csv").write_text("file,class\n")
    return ["shards", setup.folder / "photos", setup.folder / "out"]


def file_as_output_folder(setup: Setup) -> list[object]:
    (setup.folder / "file").touch()
    return ["compare", setup.folder / "store", "--out", setup.folder / "file"]


def no_images(setup: Setup) -> list[object]:
    (setup.folder / "nowhere").mkdir()
    return ["score", setup.folder / "nowhere", setup.recipe, "--store", setup.folder / "new", "--name", "theirs"]


def unusable_images(setup: Setup) -> list[object]:
    write_shard(setup.folder / "in" / "s.tar", [{**sample(0), "jpg": b"no image"}])
    return setup.generate(setup.recipe)


def unusable_compressed_images(setup: Setup) -> list[object]:
    command = unusable_images(setup)
    shard = setup.folder / "in" / "s.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    return command


def train_command(setup: Setup, old: str = "", new: str = "") -> list[object]:
    recipe = write_training_recipe(setup.folder, setup.folder / "store", setup.checkpoint)
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    return ["train", recipe, "--store", setup.folder / "new"]


def finalized_train_command(setup: Setup, old: str, new: str) -> list[object]:
    finalize.finalize(Ledger(Storage(str(setup.folder / "store"))))
    return train_command(setup, old, new)


# The command for each row of the table, in order.
COMMANDS: dict[str, Callable[[Setup], list[object]]] = {
    "cannot be read": lambda setup: setup.generate(setup.folder / "nobody.toml"),
    "not TOML": lambda setup: setup.generate(setup.edited("[data]", "[data")),
    "missing": lambda setup: setup.generate(setup.edited(f'shards = "{setup.folder}/in/*.tar"\n', "")),
    "unknown": lambda setup: setup.generate(setup.edited("classes = 10", "classes = 10\nclases = 10")),
    "bare tag": lambda setup: setup.generate(setup.edited(setup.network, 'model = "resnet50"', times=1)),
    "combination": lambda setup: setup.generate(setup.edited('"i"', '"gpn+mi"')),
    "epsilon": lambda setup: setup.generate(setup.edited("[data]", "[budget]\nepsilon = 0.001\n[data]")),
    "no shard": lambda setup: setup.generate(setup.edited("*.tar", "other.tar")),
    "no folder": lambda setup: setup.generate(setup.edited("/in/", "/nowhere/")),
    "zipped": zipped_shard,
    "truncated": truncated_shard,
    "no target class": no_target_class,
    "unusable": unusable_images,
    "unusable, found by workers": unusable_compressed_images,
    "not cached": lambda setup: setup.generate(setup.edited(setup.network, 'model = "resnet50.tv_in1k"')),
    "no weights": lambda setup: setup.generate(setup.edited(str(setup.checkpoint), f"{setup.folder}/nobody.pt")),
    "no fit": wrong_class_count,
    "an object": lambda setup: other_weights(setup, torch.nn.Linear(1, 1)),
    "model and ema": lambda setup: other_weights(setup, {"model": weights(setup), "ema": weights(setup, bias=1.0)}),
    "transform_input": lambda setup: setup.generate(
        setup.edited(
            setup.network,
            setup.network.replace("test_resnet", "torchvision/googlenet")
            + "\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]",
            times=1,
        )
    ),
    "not finite": lambda setup: other_weights(setup, weights(setup, bias=float("nan"))),
    "no store": lambda setup: ["report", setup.folder / "results"],
    "a file": lambda setup: ["generate", setup.recipe, "--store", setup.recipe],
    "no run": lambda setup: ["report", setup.folder / "in"],
    "no scheme": lambda _: ["report", "s3:bucket/prefix"],
    "no credentials": lambda _: ["report", "s3://bucket/prefix"],
    "damaged": damaged_result,
    "incomplete": incomplete_store,
    "no Ray": lambda setup: setup.generate(setup.recipe, "--address", "foo"),
    "nobody listens": lambda setup: setup.generate(setup.recipe, "--address", "127.0.0.1:9"),
    "jobs": lambda setup: setup.generate(setup.recipe, "--address", "http://127.0.0.1:8265"),
    "no room": lambda setup: setup.generate(setup.edited("generators = 1", "generators = 100")),
    "no epochs": lambda setup: train_command(setup, "epochs = 3", "epochs = 0"),
    "not finalized": train_command,
    "of nobody": lambda setup: finalized_train_command(setup, "classes = 10", 'classes = 10\nsources = "nobody"'),
    "few images": lambda setup: finalized_train_command(setup, "workers = 2", "workers = 40"),
    "no base": lambda setup: ["compare", setup.folder / "store", "--base", "nobody", "--out", setup.folder],
    "no grid": lambda setup: ["ablation", setup.folder / "store", "--attack", "mi", "--out", setup.folder],
    "no key": lambda setup: ["show", setup.folder / "store", "nobody", "--out", setup.folder],
    "two formats": lambda setup: ["report", setup.folder / "store", "--json", "--csv"],
    "in the way": file_as_output_folder,
    "no images": no_images,
    "no such attack": lambda setup: [
        *("landscape", setup.recipe, "--store", setup.folder / "store", "--attack", "nobody", "--out", setup.folder)
    ],
    "no log": lambda setup: setup.generate(setup.recipe, "--log", setup.folder),
    "no photographs": lambda setup: ["shards", setup.folder / "in", setup.folder / "out"],
    "splits": lambda setup: pack_classes(setup, "train/cat", "val/cat"),
    "numbers and names": lambda setup: pack_classes(setup, "0", "cat"),
    "other classes": other_classes,
    "no labels": no_labels,
    "twice": existing_shards,
}


def rows() -> Iterator[tuple[str, int]]:
    for line in (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines():
        found = ROW.match(line)
        if found:
            yield found["line"], int(found["code"])


@pytest.fixture
def quiet_environment(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a model hub, a cloud and a cluster."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "RAY_ADDRESS", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(setup.folder))


def run_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command, and what it prints to standard error.

    In this process, on the Ray that it has; in a process of its own where the address of a Ray is what is wrong.
    """
    if "--address" in arguments:
        command = [sys.executable, "-m", "jobs", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gnp", *arguments])
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = cli.run()
        finally:
            signal.signal(signal.SIGTERM, before)
    return code, capsys.readouterr().err


def test_every_row_has_a_command() -> None:
    assert len(list(rows())) == len(COMMANDS)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_on_four_devices", "quiet_environment")
@pytest.mark.parametrize(("name", "row"), list(zip(COMMANDS, rows(), strict=False)), ids=list(COMMANDS))
def test_a_failing_command_prints_the_line_in_the_docs(
    name: str, row: tuple[str, int], setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    line, code = row
    found_code, stderr = run_command([*map(str, COMMANDS[name](setup))], capsys)
    (printed,) = stderr.splitlines()
    assert found_code == code
    assert re.fullmatch(".+".join(map(re.escape, line.split("…"))), printed), printed
