"""docs/errors.md, row by row: each line there is provoked, and is what comes out, alone."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.ledger import Ledger
from pipeline.maintenance import finalize
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import attack, jpeg, make_plan, sample, tiny_job, write_recipe, write_shard, write_training_recipe
from tests.stages.runs import run_stages

ROW = re.compile(r"^\| `(?P<line>[^`]+)` \| (?P<code>\d) \| ")


@dataclass(frozen=True)
class Place:
    """A folder with a shard in `in`, a recipe for it, and a store with results of two attacks."""

    folder: Path
    checkpoint: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def network(self) -> str:
        return f'model = "test_resnet"\ncheckpoint = "{self.checkpoint}"'

    def altered(self, old: str, new: str, *, times: int = -1) -> Path:
        text = self.recipe.read_text()
        assert old in text
        path = self.folder / "altered.toml"
        path.write_text(text.replace(old, new, times))
        return path

    def generate(self, recipe: Path, *options: object) -> list[object]:
        return ["generate", recipe, "--store", self.folder / "new", *options]


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoint: Path) -> Place:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(3)])
    write_recipe(tmp_path, tiny_checkpoint)
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("i"), attack("mi"))))
    ledger = Ledger(Storage(str(tmp_path / "store"), create=True))
    ledger.record_plan(planned.to_record())
    run_stages(planned, ledger)
    return Place(tmp_path, tiny_checkpoint)


def truncated(place: Place) -> list[object]:
    shard = place.folder / "in" / "s.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    return place.generate(place.recipe)


def damaged(place: Place) -> list[object]:
    result = next((place.folder / "store" / "results" / "transfer").rglob("*.parquet"))
    result.write_bytes(result.read_bytes()[:-1] + b"x")
    return ["report", place.folder / "store"]


def incomplete(place: Place) -> list[object]:
    next((place.folder / "store" / "markers" / "transfer").rglob("*.json")).unlink()
    return ["finalize", place.folder / "store"]


def zipped(place: Place) -> list[object]:
    (place.folder / "in" / "s.tar").rename(place.folder / "in" / "s.tar.gz")
    return place.generate(place.altered("*.tar", "s.tar.gz"))


def unfit(place: Place) -> list[object]:
    return place.generate(place.altered("classes = 10", "classes = 11"))


def twice(place: Place) -> list[object]:
    (place.folder / "photos" / "cat").mkdir(parents=True)
    (place.folder / "photos" / "cat" / "1.jpg").write_bytes(jpeg(0))
    (place.folder / "out").mkdir()
    (place.folder / "out" / "images-000000.tar").touch()
    return ["shards", place.folder / "photos", place.folder / "out"]


def no_labels(place: Place) -> list[object]:
    (place.folder / "photos").mkdir()
    (place.folder / "photos" / "labels.csv").write_text("file,class\n")
    return ["shards", place.folder / "photos", place.folder / "out"]


def in_the_way(place: Place) -> list[object]:
    (place.folder / "file").touch()
    return ["compare", place.folder / "store", "--out", place.folder / "file"]


def no_images(place: Place) -> list[object]:
    (place.folder / "nowhere").mkdir()
    return ["score", place.folder / "nowhere", place.recipe, "--store", place.folder / "new", "--name", "theirs"]


def unusable(place: Place) -> list[object]:
    write_shard(place.folder / "in" / "s.tar", [{**sample(0), "jpg": b"no image"}])
    return place.generate(place.recipe)


def train_command(place: Place, old: str = "", new: str = "") -> list[object]:
    recipe = write_training_recipe(place.folder, place.folder / "store", place.checkpoint)
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    return ["train", recipe, "--store", place.folder / "new"]


def of_nobody(place: Place) -> list[object]:
    finalize.finalize(Ledger(Storage(str(place.folder / "store"))))
    return train_command(place, "classes = 10", 'classes = 10\nsources = "nobody"')


# What is run for each line of the table.
PROVOKED: dict[str, Callable[[Place], list[object]]] = {
    "cannot be read": lambda place: place.generate(place.folder / "nobody.toml"),
    "not TOML": lambda place: place.generate(place.altered("[data]", "[data")),
    "missing": lambda place: place.generate(place.altered(f'shards = "{place.folder}/in/*.tar"\n', "")),
    "unknown": lambda place: place.generate(place.altered("classes = 10", "classes = 10\nclases = 10")),
    "bare tag": lambda place: place.generate(place.altered(place.network, 'model = "resnet50"', times=1)),
    "combination": lambda place: place.generate(place.altered('"i"', '"gpn+mi"')),
    "epsilon": lambda place: place.generate(place.altered("[data]", "[budget]\nepsilon = 0.001\n[data]")),
    "no shard": lambda place: place.generate(place.altered("*.tar", "other.tar")),
    "no folder": lambda place: place.generate(place.altered("/in/", "/nowhere/")),
    "zipped": zipped,
    "truncated": truncated,
    "no target class": lambda place: place.generate(place.altered('"i"', '{ attack = "mi", target_class = "shard" }')),
    "unusable": unusable,
    "not cached": lambda place: place.generate(place.altered(place.network, 'model = "resnet50.tv_in1k"')),
    "no weights": lambda place: place.generate(place.altered(str(place.checkpoint), f"{place.folder}/nobody.pt")),
    "no fit": unfit,
    "no store": lambda place: ["report", place.folder / "results"],
    "a file": lambda place: ["generate", place.recipe, "--store", place.recipe],
    "no run": lambda place: ["report", place.folder / "in"],
    "no scheme": lambda _: ["report", "s3:bucket/prefix"],
    "no credentials": lambda _: ["report", "s3://bucket/prefix"],
    "damaged": damaged,
    "incomplete": incomplete,
    "no Ray": lambda place: place.generate(place.recipe, "--address", "foo"),
    "nobody listens": lambda place: place.generate(place.recipe, "--address", "127.0.0.1:9"),
    "jobs": lambda place: place.generate(place.recipe, "--address", "http://127.0.0.1:8265"),
    "no room": lambda place: place.generate(place.altered("[engine]", "[engine]\ngenerators = 100")),
    "no epochs": lambda place: train_command(place, "epochs = 3", "epochs = 0"),
    "not finalized": train_command,
    "of nobody": of_nobody,
    "no base": lambda place: ["compare", place.folder / "store", "--base", "nobody", "--out", place.folder],
    "no grid": lambda place: ["ablation", place.folder / "store", "--attack", "mi", "--out", place.folder],
    "no key": lambda place: ["show", place.folder / "store", "nobody", "--out", place.folder],
    "two formats": lambda place: ["report", place.folder / "store", "--json", "--csv"],
    "in the way": in_the_way,
    "no images": no_images,
    "no such attack": lambda place: [
        *("landscape", place.recipe, "--store", place.folder / "store", "--attack", "nobody", "--out", place.folder)
    ],
    "no log": lambda place: place.generate(place.recipe, "--log", place.folder),
    "no photographs": lambda place: ["shards", place.folder / "in", place.folder / "out"],
    "no labels": no_labels,
    "twice": twice,
}


def rows() -> Iterator[tuple[str, int]]:
    for line in (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines():
        found = ROW.match(line)
        if found:
            yield found["line"], int(found["code"])


def provoked(place: Place, name: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "jobs", *map(str, PROVOKED[name](place))]
    # Of no hub, no cloud and no cluster.
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_ADDRESS", "HF_"))}
    environment = {**quiet, "HF_HUB_OFFLINE": "1", "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(place.folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_every_row_is_provoked() -> None:
    assert len(list(rows())) == len(PROVOKED)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "row"), list(zip(PROVOKED, rows(), strict=False)), ids=list(PROVOKED))
def test_a_failure_is_the_one_line_that_the_docs_have(name: str, row: tuple[str, int], place: Place) -> None:
    line, code = row
    done = provoked(place, name)
    # Ray's C++ side has a line of its own, and an item that is tried again a warning for each try.
    (said,) = (each for each in done.stderr.splitlines() if "logging.cc" not in each and "of 3: " not in each)
    assert done.returncode == code
    assert re.fullmatch(".+".join(map(re.escape, line.split("…"))), said), said
