import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import WeightsError
from pipeline.models import load, registry
from pipeline.models.classifier import Classifier
from pipeline.models.registry import ResolvedModel
from pipeline.models.spec import ModelSpec
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import CLASSES, SIDE

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A checkpoint that a test may change or remove."""
    path = tmp_path / "copy.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes())
    return path


def spec_of(checkpoint: Path) -> ModelSpec:
    return ModelSpec("test_resnet", name="tiny", checkpoint=str(checkpoint), input_size=SIDE)


def resolve(spec: ModelSpec, storage: Storage) -> ResolvedModel:
    return registry.resolve_model(spec, storage, classes=CLASSES)


def change(checkpoint: Path) -> None:
    state = load_file(checkpoint)
    state["fc.bias"][0] += 1
    save_file(state, checkpoint)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a model was loaded")


def test_a_model_is_loaded_only_the_first_time_it_is_resolved(
    storage: Storage, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(spec_of(checkpoint), storage)
    monkeypatch.setattr(load, "load_model", refuse)
    assert resolve(spec_of(checkpoint), storage) == first


def test_a_tag_keeps_the_weights_that_it_was_first_resolved_to(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []

    def download(spec: ModelSpec) -> torch.nn.Module:  # replaces the hub: random weights, others at each call
        downloads.append(spec)
        return load._build_network(spec, CLASSES, {})

    monkeypatch.setattr(load, "_load_pretrained", download)
    tag = ModelSpec("test_resnet.r160_in1k", input_size=SIDE)
    first = resolve(tag, storage)
    assert resolve(tag, storage) == first
    assert len(downloads) == 1
    assert registry.load_resolved(first, storage, classes=CLASSES, device=CPU).digest == first.digest


def test_a_changed_checkpoint_is_another_model(storage: Storage, checkpoint: Path) -> None:
    before = resolve(spec_of(checkpoint), storage)
    change(checkpoint)
    after = resolve(spec_of(checkpoint), storage)
    assert len({before.id, after.id}) == len({before.digest, after.digest}) == 2
    for model in (before, after):  # a run that began with the old weights can end with them
        assert registry.load_resolved(model, storage, classes=CLASSES, device=CPU).digest == model.digest
    assert resolve(spec_of(checkpoint), storage) == after


def test_the_same_weights_in_another_file_are_the_same_model(storage: Storage, checkpoint: Path) -> None:
    first = resolve(spec_of(checkpoint), storage)
    copy = checkpoint.with_name("copy.pth")
    torch.save(load_file(checkpoint), copy)
    second = resolve(spec_of(copy), storage)
    assert (second.id, second.weights_sha256) == (first.id, first.weights_sha256)
    assert len(list(storage.list("weights"))) == 1


def test_a_model_from_the_store_gives_bit_for_bit_what_the_checkpoint_gives(storage: Storage, checkpoint: Path) -> None:
    stored = registry.load_resolved(resolve(spec_of(checkpoint), storage), storage, classes=CLASSES, device=CPU)
    direct = load.load_model(spec_of(checkpoint), classes=CLASSES).optimize_for(CPU)
    torch.manual_seed(0)
    images = torch.rand(4, 3, 40, 40)
    with torch.inference_mode():
        assert torch.equal(stored(images), direct(images))
    assert stored.preprocessing == direct.preprocessing


def test_a_resolved_model_no_longer_needs_its_checkpoint(storage: Storage, checkpoint: Path) -> None:
    model = resolve(spec_of(checkpoint), storage)
    checkpoint.unlink()
    assert registry.load_resolved(model, storage, classes=CLASSES, device=CPU).digest == model.digest
    with pytest.raises(WeightsError, match=r"checkpoint .*copy\.safetensors: no such object"):
        resolve(spec_of(checkpoint), storage)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: None, "no such object"),
        (lambda data: data[:-1], "damaged"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged"),
        (lambda data: b"", "damaged"),
    ],
    ids=["missing", "cut", "flipped", "empty"],
)
def test_missing_or_damaged_stored_weights_are_reported_in_one_line(
    storage: Storage, checkpoint: Path, damage: object, message: str
) -> None:
    model = resolve(spec_of(checkpoint), storage)
    (stored,) = storage.list("weights")
    damaged = damage(storage.get(stored.key))  # type: ignore[operator]
    storage.delete([stored.key]) if damaged is None else storage.put(stored.key, damaged)
    with pytest.raises(WeightsError, match=message) as refused:
        registry.load_resolved(model, storage, classes=CLASSES, device=CPU)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("tiny: its weights: ")


def resolve_in_threads(spec: ModelSpec, storage: Storage, threads: int) -> list[ResolvedModel]:
    """Resolves one model in several threads at once; returns their results."""
    models: list[ResolvedModel] = []
    workers = [threading.Thread(target=lambda: models.append(resolve(spec, storage))) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return models


def test_concurrent_runs_resolve_a_checkpoint_to_the_same_model(
    storage: Storage, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier, lock = threading.Barrier(4), threading.Lock()
    real = load.load_model

    def load_together(*arguments: object, **options: object) -> Classifier:
        barrier.wait(60)  # until every thread has found no record
        with lock:
            return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(load, "load_model", load_together)
    models = resolve_in_threads(spec_of(checkpoint), storage, 4)
    assert len(models) == 4
    assert all(model == models[0] for model in models)


def test_concurrent_runs_resolve_a_moving_tag_to_the_same_model(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier, lock = threading.Barrier(4), threading.Lock()

    def download(spec: ModelSpec) -> torch.nn.Module:
        barrier.wait(60)
        with lock:
            return load._build_network(spec, CLASSES, {})

    monkeypatch.setattr(load, "_load_pretrained", download)
    models = resolve_in_threads(ModelSpec("test_resnet.r160_in1k", input_size=SIDE), storage, 4)
    assert len(models) == 4
    assert all(model == models[0] for model in models)
    assert len(list(storage.list("weights"))) == 4, "the weights that lost the race stay, unused"


# A hub repository in the hub's local cache, whose configuration has an argument that its name does not contain.
_HUB_MODEL = """
import shutil, sys
from pathlib import Path
import timm, torch
from pipeline.models import registry
from pipeline.models.spec import ModelSpec
from pipeline.storage import Storage

home, store = Path(sys.argv[1]), Storage(sys.argv[2], create=True)
cached = home / "hub" / "models--owner--model"
(cached / "refs").mkdir(parents=True)
(cached / "refs" / "main").write_text("0" * 40)
network = timm.create_model("test_resnet", num_classes=7, act_layer="silu")
snapshot = cached / "snapshots" / ("0" * 40)
timm.models.save_for_hf(network, snapshot, model_args={"act_layer": "silu"}, safe_serialization=True)
model = registry.resolve_model(ModelSpec("hf-hub:owner/model", input_size=32), store, classes=7)
shutil.rmtree(cached)
loaded = registry.load_resolved(model, store, classes=7, device=torch.device("cpu"))
assert loaded.digest == model.digest
assert "SiLU" in repr(loaded.network)
print("loaded without the hub")
"""


def test_a_worker_reads_nothing_from_the_hub_not_even_a_configuration(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _HUB_MODEL, str(tmp_path / "home"), str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "loaded without the hub" in done.stdout, done.stderr
