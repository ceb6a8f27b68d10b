import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline import dataset
from pipeline.dataset.batch import Batch
from pipeline.dataset.examples import Examples
from pipeline.errors import RecipeError
from tests.conftest import ROOT
from tests.dataset.batches import read_digests


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_in_the_middle_of_an_epoch(filled_store: Path, workers: int) -> None:
    def loader(epoch: int = 0) -> StatefulDataLoader[Batch]:
        examples = dataset.open(str(filled_store)).examples(batch_size=4, clean=0.3)
        if epoch:
            examples.set_epoch(epoch)
        settings = {"multiprocessing_context": "forkserver"} if workers else {}
        return StatefulDataLoader(examples, batch_size=None, num_workers=workers, **settings)

    whole = read_digests(loader(epoch=3))
    begun, state = loader(epoch=3), {}
    head = []
    for number, batch in enumerate(begun):
        head += read_digests([batch])
        if number == 6:
            state = begun.state_dict()
            break
    resumed = loader()
    resumed.load_state_dict(state)
    assert head + read_digests(resumed) == whole


def test_a_state_of_another_order_is_refused(filled_store: Path) -> None:
    state = dataset.open(str(filled_store)).examples(seed=1).state_dict()
    with pytest.raises(RecipeError, match=r"state_dict: made with snapshot .* seed=1.*, this is .* seed=0"):
        dataset.open(str(filled_store)).examples().load_state_dict(state)


def test_the_epoch_after_a_resumed_one_is_complete(filled_store: Path) -> None:
    examples = dataset.open(str(filled_store)).examples()
    examples.load_state_dict({**examples.state_dict(), "position": 50})
    assert len(read_digests(examples)) == 10
    assert len(read_digests(examples)) == 60


@pytest.mark.parametrize("workers", [0, 1])
def test_after_a_checkpoint_at_the_end_of_an_epoch_the_next_one_is_complete(filled_store: Path, workers: int) -> None:
    def loader() -> tuple[Examples, StatefulDataLoader[Batch]]:
        examples = dataset.open(str(filled_store)).examples(batch_size=8)
        settings = {"multiprocessing_context": "forkserver"} if workers else {}
        return examples, StatefulDataLoader(examples, batch_size=None, num_workers=workers, **settings)

    examples, first = loader()
    examples.set_epoch(0)
    list(first)
    state = first.state_dict()
    examples.set_epoch(1)
    expected = read_digests(first)
    for before in (True, False):
        examples, resumed = loader()
        if before:
            examples.set_epoch(1)
        resumed.load_state_dict(state)
        if not before:
            examples.set_epoch(1)
        assert read_digests(resumed) == expected


def test_a_state_belongs_to_the_epoch_in_progress(filled_store: Path) -> None:
    examples = dataset.open(str(filled_store)).examples(batch_size=8)
    examples.set_epoch(0)
    whole, reading = read_digests(examples), iter(examples)
    head = read_digests([next(reading), next(reading)])
    examples.set_epoch(1)
    state = examples.state_dict()
    assert (state["epoch"], state["position"]) == (0, 16)
    resumed = dataset.open(str(filled_store)).examples(batch_size=8)
    resumed.load_state_dict(state)
    assert head + read_digests(resumed) == whole
    assert len(read_digests(reading)) == 44
    assert examples.state_dict() == {**state, "epoch": 1, "position": 0}, "what comes next"
    iter(examples)
    assert examples.state_dict() == {**state, "epoch": 1, "position": 0}


TRAINING_SCRIPT = """
import sys
from pipeline import dataset
from torchdata.stateful_dataloader import StatefulDataLoader
import json, pathlib

def main(store, state, log):
    examples = dataset.open(store).examples(batch_size=4, seed=7)
    loader = StatefulDataLoader(examples, batch_size=None, num_workers=2, multiprocessing_context="forkserver")
    if pathlib.Path(state).exists():
        loader.load_state_dict(json.loads(pathlib.Path(state).read_text()))
    with open(log, "a") as out:
        for number, batch in enumerate(loader):
            print(json.dumps([batch["keys"], batch["attacks"]]), file=out, flush=True)
            pathlib.Path(state).write_text(json.dumps(loader.state_dict()))
            print("batch", flush=True)
            if len(sys.argv) > 4 and number == 4:
                sys.stdin.read()

if __name__ == "__main__":
    main(*sys.argv[1:4])
"""


@pytest.mark.journey
def test_a_killed_training_process_resumes_with_the_same_sequence(filled_store: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINING_SCRIPT)

    def command(name: str, *more: str) -> list[str]:
        return [
            sys.executable,
            str(script),
            str(filled_store),
            str(tmp_path / f"{name}.json"),
            str(tmp_path / name),
            *more,
        ]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command("whole"), env=environment, check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen(
        command("killed", "wait"), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline() == "batch\n"
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 3, "two workers, and the server that forked them"
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive, "its loader's workers do not outlive it"
    subprocess.run(command("killed"), env=environment, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "killed").read_text() == (tmp_path / "whole").read_text()
