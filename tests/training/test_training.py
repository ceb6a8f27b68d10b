import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch
from tensorboardX.proto import event_pb2
from torch import Tensor, nn

from pipeline import training
from pipeline.data import codec
from pipeline.dataset.examples import Batch
from pipeline.errors import CapacityError, IntegrityError, MissingError, RecipeError
from pipeline.ledger import Ledger
from pipeline.maintenance import finalize
from pipeline.models import load
from pipeline.models.classifier import Classifier
from pipeline.models.load import ModelSpec
from pipeline.results.intervals import Rate
from pipeline.storage import Storage
from pipeline.training import Data, HeldOut, Lesson, Schedule, Workers, card
from pipeline.training import recipe as lessons
from pipeline.training.accuracy import of_originals, of_transfer
from pipeline.training.fit import Trainee, rate_over
from pipeline.training.records import Records
from tests.conftest import ROOT
from tests.maintenance.test_finalize import make
from tests.samples import CLASSES, SIDE, attack, sample, tiny_job, write_lesson, write_shard


def batch(count: int = 8, *, clean: int = 4) -> Batch:
    torch.manual_seed(1)
    return {
        "images": torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8),
        "labels": torch.arange(count) % CLASSES,
        "keys": [str(index) for index in range(count)],
        "adversarial": torch.arange(count) >= clean,
    }


def trainee(checkpoint: Path, **settings: Any) -> Trainee:
    network = load.load(ModelSpec("test_resnet", checkpoint=str(checkpoint), input_size=SIDE), classes=CLASSES)
    schedule = Schedule(**{"learning_rate": 1e-3, **settings})
    return Trainee(network.requires_grad_(True), schedule, attack("pgd"), steps=10, distributed=False)


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_rate_goes_up_in_a_line_and_down_as_half_a_cosine() -> None:
    at = rate_over(110, 0.1)
    assert [at(step) for step in (0, 4, 10)] == pytest.approx([1 / 11, 5 / 11, 1])
    assert at(11) == 1
    assert at(60) == pytest.approx(0.5 * (1 + math.cos(math.pi * 49 / 99)))
    assert at(110) == pytest.approx(0)


def test_a_step_done_again_is_the_same(tiny_checkpoint: Path) -> None:
    settings = {"crafted": 0.5, "augment": "flip"}
    one, other, third = (trainee(tiny_checkpoint, **settings) for _ in range(3))
    losses = [each.step(batch(), seed=(0, 0, 0, 0)) for each in (one, other)]
    assert losses[0] == losses[1]
    assert same(one.network, other.network)
    third.step(batch(), seed=(0, 1, 0, 0))
    assert not same(one.network, third.network), "another epoch mirrors and crafts otherwise"


def test_a_state_goes_on_as_if_nothing_had_been(tiny_checkpoint: Path, tmp_path: Path) -> None:
    whole, resumed = trainee(tiny_checkpoint), trainee(tiny_checkpoint)
    for step in range(3):
        whole.step(batch(), seed=(step,))
    records = Records(Storage(str(tmp_path)), "lesson", "run")
    records.keep(whole.state(), epoch=0, step=3)
    resumed.load(records.kept() or {})
    for each in (whole, resumed):
        each.step(batch(), seed=(3,))
    assert same(whole.network, resumed.network)
    assert same(whole.averaged, resumed.averaged)
    assert whole.learning_rate == resumed.learning_rate


def test_training_lowers_the_loss_and_the_average_follows(tiny_checkpoint: Path) -> None:
    each = trainee(tiny_checkpoint, ema=0.5)
    losses = [each.step(batch(), seed=(step,)) for step in range(10)]
    assert losses[-1] < losses[0]
    assert not same(each.network, each.averaged)
    plain = trainee(tiny_checkpoint, ema=0.0)
    assert plain.averaged is plain.network


def test_crafted_images_are_clean_ones_within_the_budget(tiny_checkpoint: Path) -> None:
    each, told = trainee(tiny_checkpoint, crafted=0.5), batch()
    before = codec.to_float(told["images"])
    after = each._with_crafted(before.clone(), told["labels"], ~told["adversarial"], told["keys"])
    moved = (after - before).abs().amax(dim=(1, 2, 3))
    assert (moved[:2] > 0).all()
    assert (moved[:2] <= 8 / 255 + 1e-6).all()
    assert (moved[2:] == 0).all()


def test_bfloat16_keeps_weights_in_float32(tiny_checkpoint: Path) -> None:
    each = trainee(tiny_checkpoint, precision="bfloat16")
    assert math.isfinite(each.step(batch(), seed=(0,)))
    assert {parameter.dtype for parameter in each.network.parameters()} == {torch.float32}


def test_a_loss_that_is_not_finite_is_an_error(tiny_checkpoint: Path) -> None:
    each = trainee(tiny_checkpoint)
    with torch.no_grad():
        next(each.network.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan; lower learning_rate"):
        each.step(batch(), seed=(0,))


class Even(nn.Module):
    """Says 0 where the first value is below a half, else 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        first = (images[:, 0, 0, 0] - 0.5) * self.scale
        return torch.stack([-first, first], dim=1)


def test_accuracy_counts_what_is_right() -> None:
    pixels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor([0, 120, 135, 255])
    told: Batch = {"images": pixels, "labels": torch.tensor([0, 0, 1, 0]), "keys": list("abcd")}
    found = of_originals(Even(), [told, told], attack("i", epsilon=Fraction(16, 255)))
    assert (found.clean, found.white_box, found.transfer) == (Rate(6, 8), Rate(2, 8), Rate(0, 0))
    assert of_transfer(Even(), [told]).transfer == Rate(3, 4)


def test_the_last_state_is_kept_and_a_damaged_one_refused(storage: Storage) -> None:
    records = Records(storage, "my lesson", "r")
    assert records.kept() is None
    for step in (1, 2):
        records.keep({"step": step, "tensor": torch.full((3,), step)}, epoch=0, step=step)
    kept = records.kept()
    assert kept is not None
    assert (kept["step"], kept["tensor"].tolist()) == (2, [2, 2, 2])
    (key,) = (stored.key for stored in storage.list(f"{records.folder}") if stored.key.endswith(".pt"))
    assert key.startswith("training/my-lesson/runs/r/state-0000-00000002-")
    storage.put(key, b"damaged")
    with pytest.raises(IntegrityError, match="damaged"):
        records.kept()


def test_the_loop_s_recipe_is_one() -> None:
    lesson = lessons.load(ROOT / "jobs/recipes/closed-loop-training.toml")
    assert (lesson.name, lesson.model.name, lesson.data.classes) == ("hardened", "untrained", 10)
    assert [each.name for each in lesson.held_out] == ["nfnet", "mambaout"]
    assert (lesson.attack.epsilon, lesson.schedule.crafted) == (Fraction(64, 255), 0.5)
    assert lesson.data.stores == (str(Path.cwd() / "build/loop/store"),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("clean = 0.5", "clena = 0.5", "data.clena: unknown key; did you mean clean?"),
        ("clean = 0.5", "clean = 0", "crafted: clean images are attacked, and data.clean = 0 leaves none"),
        ("clean = 0.5", "clean = 1.0", "data.clean = 1.0: input should be less than 1"),
        ('name = "mambaout"', 'name = "nfnet"', "held_out: two are of one name"),
        ('epsilon = "64/255"', 'epsilon = ["1/255", "2/255"]', "budget: one epsilon and one number of steps"),
        ("epochs = 3", "epochs = 0", "schedule: epochs = 0, batch_size = 64: at least 1, and 2"),
        ("learning_rate = 1e-3", "learning_rate = -1", "schedule: learning_rate must be positive"),
        ('stores = "build/loop/store"', "stores = []", "data.stores = []: is empty; at least one is wanted"),
    ],
)
def test_a_fault_is_refused_by_field_and_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (ROOT / "jobs/recipes/closed-loop-training.toml").read_text()
    assert old in text
    (path := tmp_path / "training.toml").write_text(text.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        lessons.load(path)
    assert message in str(caught.value)


def test_the_card_and_the_events_have_the_figures() -> None:
    def figures(epoch: int, loss: float | None, right: int) -> dict[str, Any]:
        counts = {"clean": [9, 10], "transfer": [right, 10], "white_box": [0, 0]}
        return {"epoch": epoch, "loss": loss, "learning_rate": 0.1, "held_out": {"vit": counts}}

    identity = {"model": {"model": "m", "digest": "d" * 64}, "attack": {"name": "i", "epsilon": "8/255"}}
    epochs = [figures(0, None, 1), figures(1, 0.5, 8)]
    said = card.text("mine", identity, epochs, weights="somewhere", notices=["held_out vit: none is"])
    assert "\n\n**held_out vit: none is**\n\n| held out" in said
    assert "| vit | 10 | stored adversarial | 10.0% (1.8 … 40.4) | 80.0% (49.0 … 94.3) |" in said
    assert "| vit | 0 | white-box | – | – |" in said
    assert "| 1 | 0.500 | 90.0% | 80.0% |  |" in said
    assert {tag: value for tag, value in scalars(card.events(epochs)) if tag == "accuracy/vit/transfer"} == {
        "accuracy/vit/transfer": pytest.approx(0.8)
    }


def scalars(data: bytes) -> Iterator[tuple[str, float]]:
    """What an event file says: records of length, its checksum, the event, its checksum."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        yield from ((value.tag, value.simple_value) for value in event.summary.value)
        at += 16 + size


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A store of 26 images under two attacks, not finalized."""
    folder = tmp_path_factory.mktemp("trained-on")
    write_shard(folder / "in" / "s.tar", [sample(index) for index in range(26)])
    attacks = attack("noise"), attack("mi")
    make(tiny_job(folder / "in", tiny_checkpoint, attacks=attacks), Ledger(Storage(f"{folder}/store", create=True)))
    return folder / "store"


def lesson_on(store: Path, checkpoint: Path, **settings: Any) -> Lesson:
    told: dict[str, Any] = {"epochs": 3, "batch_size": 4, "crafted": 0.5, "augment": "flip", **settings}
    return Lesson(
        name="tiny",
        model=ModelSpec("test_resnet", name="tiny", checkpoint=str(checkpoint), input_size=SIDE),
        data=Data((str(store),), classes=CLASSES, attacks=("mi",)),
        held_out=(HeldOut("noisy", str(store), attacks=("noise",)),),
        schedule=Schedule(**told),
        attack=attack("i"),
        engine=Workers(workers=2, gpus_per_worker=0, loaders=1, checkpoint_steps=2),
    )


def test_a_store_that_is_not_finalized_is_refused(made: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no version is finalized here; run finalize"):
        training.train(lesson_on(made, tiny_checkpoint), str(tmp_path / "out"))


def training_of(recipe: Path, store: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "train", str(recipe), "--store", str(store)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def own(errors: str) -> list[str]:
    """Lines but for that of Ray's C++ side."""
    return [line for line in errors.splitlines() if "logging.cc" not in line]


@pytest.mark.journey
@pytest.mark.timeout(600)
def test_the_command_is_stopped_goes_on_and_then_has_nothing_to_do(
    made: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Ray Train itself takes Ctrl-C for the end of a successful run."""
    finalize.finalize(Ledger(Storage(str(made))))
    recipe, store = write_lesson(tmp_path, made, tiny_checkpoint), tmp_path / "out"
    process = training_of(recipe, store)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "kept" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert any(line.startswith("before training: mambaout: clean ") for line in said), said
    assert process.stderr is not None
    assert own(process.stderr.read()) == ["stopped; what is committed stands: run the same command again to go on"]
    output, errors = training_of(recipe, store).communicate(timeout=300)
    assert own(errors) == []
    assert re.search(r"^epoch \d of 3: step \d of 7, kept$", output, re.MULTILINE), output
    assert re.search(
        r"^epoch 3 of 3: loss \d\.\d{3}; mambaout: clean [\d.]+%, stored adversarial ", output, re.MULTILINE
    )
    assert f"trained; weights: {store}/training/hardened/weights.safetensors\n" in output
    output, errors = training_of(recipe, store).communicate(timeout=100)
    assert (own(errors), "nothing to do: trained before" in output) == ([], True)


@pytest.mark.journey
@pytest.mark.usefixtures("ray_on_four_devices")
@pytest.mark.parametrize(
    ("gpus", "said"), [(0, "room for 4, of 1 CPU each"), (2, "room for 2, of 1 CPU and 2 GPUs each")]
)
def test_more_workers_than_there_is_room_for_are_refused(
    gpus: float, said: str, made: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    finalize.finalize(Ledger(Storage(str(made))))
    lesson = lesson_on(made, tiny_checkpoint)
    lesson = replace(lesson, engine=replace(lesson.engine, workers=5, gpus_per_worker=gpus))
    with pytest.raises(CapacityError, match=rf"engine\.workers = 5: the cluster has {said}; ask for fewer"):
        training.train(lesson, str(tmp_path / "out"))


@pytest.mark.journey
@pytest.mark.usefixtures("ray_on_four_devices")
@pytest.mark.timeout(600)
def test_a_worker_that_is_killed_changes_nothing(made: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Two ranks, each with a loader; one is killed in the middle of an epoch: the same weights, to the bit.

    They train on two stores at once, and measure on one of them.
    """
    finalize.finalize(Ledger(Storage(str(made))))
    write_shard(tmp_path / "in" / "other.tar", [sample(100 + index) for index in range(10)])
    other = Ledger(Storage(str(tmp_path / "other"), create=True))
    make(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"),)), other)
    finalize.finalize(other)
    lesson = lesson_on(made, tiny_checkpoint)
    lesson = replace(lesson, data=replace(lesson.data, stores=(str(made), str(tmp_path / "other"))))
    notices: list[str] = []
    whole = training.train(lesson, str(tmp_path / "whole"), on_notice=notices.append)
    assert notices == ["held_out noisy: 26 of its 26 originals are trained on, too; choose other datasets"]
    killed: list[int] = []

    def kill_one() -> None:
        folder = tmp_path / "killed" / "training" / "tiny" / "runs"
        end = time.monotonic() + 200
        while time.monotonic() < end and not killed:
            for state in folder.glob("*/state.json"):
                kept = json.loads(state.read_text())
                if kept["epoch"] >= 1 and kept["step"]:
                    ours = psutil.Process().children(recursive=True)
                    process = next(each for each in ours if "RayTrainWorker" in each.name())
                    killed.append(process.pid)
                    process.kill()
                    break
            time.sleep(0.002)

    killer = threading.Thread(target=kill_one)
    killer.start()
    resumed = training.train(lesson, str(tmp_path / "killed"))
    killer.join()
    assert killed
    weights = [safetensors.torch.load_file(outcome.weights) for outcome in (whole, resumed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert resumed.epochs == whole.epochs
    assert [each["epoch"] for each in whole.epochs] == [0, 1, 2, 3]
    assert {tuple(each["held_out"]["noisy"][kind])[1] for each in whole.epochs for kind in ("clean", "transfer")} == {
        26
    }
    assert whole.trained
    assert not training.train(lesson, str(tmp_path / "whole")).trained
    classifier = load.load(ModelSpec("test_resnet", checkpoint=whole.weights, input_size=SIDE), classes=CLASSES)
    assert isinstance(classifier, Classifier), "it is a checkpoint for the next recipe"
