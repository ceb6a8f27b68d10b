"""Training runs on Ray Train: refused, stopped and resumed, with a worker that is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

from pipeline import training
from pipeline.errors import CapacityError, MissingError
from pipeline.ledger import Ledger
from pipeline.maintenance import finalize
from pipeline.models.classifier import Classifier
from pipeline.models.load import load_model
from pipeline.models.spec import ModelSpec
from pipeline.storage import Storage
from pipeline.training import HeldOutSet, Schedule, TrainingData, TrainingRecipe, Workers
from tests.conftest import ROOT
from tests.maintenance.stores import fill_store
from tests.samples import CLASSES, SIDE, attack, sample, tiny_job, write_shard, write_training_recipe


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A store of 26 images under two attacks, not finalized."""
    folder = tmp_path_factory.mktemp("trained-on")
    write_shard(folder / "in" / "s.tar", [sample(index) for index in range(26)])
    job = tiny_job(folder / "in", tiny_checkpoint, attacks=(attack("noise"), attack("mi")))
    fill_store(job, Ledger(Storage(f"{folder}/store", create=True)))
    return folder / "store"


def recipe_for(store: Path, checkpoint: Path) -> TrainingRecipe:
    return TrainingRecipe(
        name="tiny",
        model=ModelSpec("test_resnet", name="tiny", checkpoint=str(checkpoint), input_size=SIDE),
        data=TrainingData((str(store),), classes=CLASSES, attacks=("mi",)),
        held_out=(HeldOutSet("noisy", str(store), attacks=("noise",)),),
        schedule=Schedule(epochs=3, batch_size=4, crafted=0.5, augment="flip"),
        attack=attack("i"),
        engine=Workers(workers=2, gpus_per_worker=0, loaders=1, checkpoint_steps=2),
    )


def test_a_store_that_is_not_finalized_is_refused(store: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no version is finalized here; run finalize"):
        training.train(recipe_for(store, tiny_checkpoint), str(tmp_path / "results"))


def start_training(recipe: Path, results: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "train", str(recipe), "--store", str(results)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def without_ray(errors: str) -> list[str]:
    """Lines of stderr, without those of Ray's C++ code."""
    return [line for line in errors.splitlines() if "logging.cc" not in line]


@pytest.mark.journey
@pytest.mark.timeout(600)
def test_the_command_is_stopped_resumes_and_then_has_nothing_to_do(
    store: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Ray Train itself takes Ctrl-C for the end of a successful run."""
    finalize.finalize(Ledger(Storage(str(store))))
    recipe, results = write_training_recipe(tmp_path, store, tiny_checkpoint), tmp_path / "results"
    process = start_training(recipe, results)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "state saved" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert any(line.startswith("before training: mambaout: clean ") for line in lines), lines
    assert process.stderr is not None
    assert without_ray(process.stderr.read()) == [
        "stopped; committed results are kept: run the same command again to resume"
    ]
    output, errors = start_training(recipe, results).communicate(timeout=300)
    assert without_ray(errors) == []
    assert re.search(r"^epoch \d of 3: step \d of 7, state saved$", output, re.MULTILINE), output
    assert re.search(
        r"^epoch 3 of 3: loss \d\.\d{3}; mambaout: clean [\d.]+%, stored adversarial ", output, re.MULTILINE
    )
    assert f"trained; weights: {results}/training/hardened/weights.safetensors\n" in output
    output, errors = start_training(recipe, results).communicate(timeout=100)
    assert (without_ray(errors), "nothing to do: trained before" in output) == ([], True)


@pytest.mark.journey
@pytest.mark.usefixtures("ray_on_four_devices")
@pytest.mark.parametrize(
    ("gpus", "room"), [(0, "room for 4, of 1 CPU each"), (2, "room for 2, of 1 CPU and 2 GPUs each")]
)
def test_more_workers_than_the_cluster_has_room_for_are_refused(
    gpus: float, room: str, store: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    finalize.finalize(Ledger(Storage(str(store))))
    recipe = recipe_for(store, tiny_checkpoint)
    recipe = replace(recipe, engine=replace(recipe.engine, workers=5, gpus_per_worker=gpus))
    with pytest.raises(CapacityError, match=rf"engine\.workers = 5: the cluster has {room}; ask for fewer"):
        training.train(recipe, str(tmp_path / "results"))


def kill_a_worker_inside_an_epoch(runs: Path, killed: list[int]) -> None:
    """Waits for a state inside the second epoch or later, and kills one training worker."""
    end = time.monotonic() + 200
    while time.monotonic() < end and not killed:
        for path in runs.glob("*/state.json"):
            state = json.loads(path.read_text())
            if state["epoch"] >= 1 and state["step"]:
                children = psutil.Process().children(recursive=True)
                worker = next(process for process in children if "RayTrainWorker" in process.name())
                killed.append(worker.pid)
                worker.kill()
                break
        time.sleep(0.002)


@pytest.mark.journey
@pytest.mark.usefixtures("ray_on_four_devices")
@pytest.mark.timeout(600)
def test_a_killed_worker_does_not_change_the_weights(store: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Two ranks, each with a loader; one is killed in the middle of an epoch: the same weights, to the bit.

    They train on two stores at once, and measure on one of them.
    """
    finalize.finalize(Ledger(Storage(str(store))))
    write_shard(tmp_path / "in" / "other.tar", [sample(100 + index) for index in range(10)])
    second_store = Ledger(Storage(str(tmp_path / "second"), create=True))
    fill_store(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"),)), second_store)
    finalize.finalize(second_store)
    recipe = recipe_for(store, tiny_checkpoint)
    recipe = replace(recipe, data=replace(recipe.data, stores=(str(store), str(tmp_path / "second"))))
    notices: list[str] = []
    whole = training.train(recipe, str(tmp_path / "whole"), on_notice=notices.append)
    assert notices == ["held_out noisy: 26 of its 26 originals are trained on, too; choose other datasets"]
    killed: list[int] = []
    runs = tmp_path / "killed" / "training" / "tiny" / "runs"
    killer = threading.Thread(target=kill_a_worker_inside_an_epoch, args=(runs, killed))
    killer.start()
    resumed = training.train(recipe, str(tmp_path / "killed"))
    killer.join()
    assert killed
    weights = [safetensors.torch.load_file(outcome.weights) for outcome in (whole, resumed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert resumed.epochs == whole.epochs
    assert [figures["epoch"] for figures in whole.epochs] == [0, 1, 2, 3]
    totals = {figures["held_out"]["noisy"][kind][1] for figures in whole.epochs for kind in ("clean", "transfer")}
    assert totals == {26}
    assert whole.trained
    assert not training.train(recipe, str(tmp_path / "whole")).trained
    classifier = load_model(ModelSpec("test_resnet", checkpoint=whole.weights, input_size=SIDE), classes=CLASSES)
    assert isinstance(classifier, Classifier), "the weights are a checkpoint for the next recipe"
