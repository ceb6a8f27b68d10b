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
from pipeline.models.load import ModelSpec
from pipeline.models.registry import Model
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import CLASSES, SIDE

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A checkpoint that a test may change or remove."""
    path = tmp_path / "mine.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes())
    return path


def spec_of(checkpoint: Path) -> ModelSpec:
    return ModelSpec("test_resnet", name="tiny", checkpoint=str(checkpoint), input_size=SIDE)


def resolve(spec: ModelSpec, storage: Storage) -> Model:
    return registry.resolve(spec, storage, classes=CLASSES)


def change(checkpoint: Path) -> None:
    state = load_file(checkpoint)
    state["fc.bias"][0] += 1
    save_file(state, checkpoint)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a model was loaded")


def test_what_is_resolved_once_is_loaded_no_more(
    storage: Storage, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(spec_of(checkpoint), storage)
    monkeypatch.setattr(load, "load", refuse)
    assert resolve(spec_of(checkpoint), storage) == first


def test_a_tag_means_for_ever_what_it_meant_first(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def hub(spec: ModelSpec) -> torch.nn.Module:  # no hub can be reached here; whatever it gives is another each time
        made.append(spec)
        return load._architecture(spec, CLASSES)

    monkeypatch.setattr(load, "_pretrained", hub)
    tag = ModelSpec("test_resnet.r160_in1k", input_size=SIDE)
    first = resolve(tag, storage)
    assert resolve(tag, storage) == first
    assert len(made) == 1
    assert registry.load(first, storage, classes=CLASSES, device=CPU).digest == first.digest


def test_a_changed_checkpoint_is_another_model(storage: Storage, checkpoint: Path) -> None:
    before = resolve(spec_of(checkpoint), storage)
    change(checkpoint)
    after = resolve(spec_of(checkpoint), storage)
    assert len({before.id, after.id}) == len({before.digest, after.digest}) == 2
    for model in (before, after):  # a run that began with the old one can end with it
        assert registry.load(model, storage, classes=CLASSES, device=CPU).digest == model.digest
    assert resolve(spec_of(checkpoint), storage) == after


def test_the_same_weights_in_another_file_are_the_same_model(storage: Storage, checkpoint: Path) -> None:
    first = resolve(spec_of(checkpoint), storage)
    copy = checkpoint.with_name("copy.pth")
    torch.save(load_file(checkpoint), copy)
    second = resolve(spec_of(copy), storage)
    assert (second.id, second.weights) == (first.id, first.weights)
    assert len(list(storage.list("weights"))) == 1


def test_a_model_from_the_store_gives_bit_for_bit_what_the_checkpoint_gives(storage: Storage, checkpoint: Path) -> None:
    stored = registry.load(resolve(spec_of(checkpoint), storage), storage, classes=CLASSES, device=CPU)
    direct = load.load(spec_of(checkpoint), classes=CLASSES).quicken(CPU)
    torch.manual_seed(0)
    images = torch.rand(4, 3, 40, 40)
    with torch.inference_mode():
        assert torch.equal(stored(images), direct(images))
    assert stored.preprocessing == direct.preprocessing


def test_a_resolved_model_needs_its_checkpoint_no_more(storage: Storage, checkpoint: Path) -> None:
    model = resolve(spec_of(checkpoint), storage)
    checkpoint.unlink()
    assert registry.load(model, storage, classes=CLASSES, device=CPU).digest == model.digest
    with pytest.raises(WeightsError, match=r"checkpoint .*mine\.safetensors: no such object"):
        resolve(spec_of(checkpoint), storage)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: None, "no such object"),
        (lambda data: data[:-1], "damaged"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged"),
        (lambda data: b"", "damaged"),
    ],
    ids=["gone", "cut", "flipped", "empty"],
)
def test_stored_weights_that_are_gone_or_damaged_are_one_line(
    storage: Storage, checkpoint: Path, damage: object, message: str
) -> None:
    model = resolve(spec_of(checkpoint), storage)
    (stored,) = storage.list("weights")
    damaged = damage(storage.get(stored.key))  # type: ignore[operator]
    storage.delete([stored.key]) if damaged is None else storage.put(stored.key, damaged)
    with pytest.raises(WeightsError, match=message) as refused:
        registry.load(model, storage, classes=CLASSES, device=CPU)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("tiny: its weights: ")


def test_those_that_resolve_at_once_agree(storage: Storage, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, lock, found = threading.Barrier(4), threading.Lock(), []
    real = load.load

    def together(*arguments: object, **options: object) -> Classifier:
        ready.wait(60)  # each has found no record, and loads
        with lock:
            return real(*arguments, **options)  # type: ignore[arg-type]

    def race() -> None:
        found.append(resolve(spec_of(checkpoint), storage))

    monkeypatch.setattr(load, "load", together)
    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(model == found[0] for model in found)


def test_those_that_resolve_a_moving_tag_at_once_agree(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, lock, found = threading.Barrier(4), threading.Lock(), []

    def hub(spec: ModelSpec) -> torch.nn.Module:
        ready.wait(60)
        with lock:
            return load._architecture(spec, CLASSES)

    def race() -> None:
        found.append(resolve(ModelSpec("test_resnet.r160_in1k", input_size=SIDE), storage))

    monkeypatch.setattr(load, "_pretrained", hub)
    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(model == found[0] for model in found)
    assert len(list(storage.list("weights"))) == 4, "what lost the race is of no use, and does no harm"


# A repository as the hub's own cache holds it, whose network is built with an argument that its name does not tell.
_HUB_MODEL = """
import shutil, sys
from pathlib import Path
import timm, torch
from pipeline import weights
from pipeline.models import ModelSpec
from pipeline.storage import Storage

home, store = Path(sys.argv[1]), Storage(sys.argv[2], create=True)
cached = home / "hub" / "models--me--mine"
(cached / "refs").mkdir(parents=True)
(cached / "refs" / "main").write_text("0" * 40)
network = timm.create_model("test_resnet", num_classes=7, act_layer="silu")
snapshot = cached / "snapshots" / ("0" * 40)
timm.models.save_for_hf(network, snapshot, model_args={"act_layer": "silu"}, safe_serialization=True)
model = weights.resolve(ModelSpec("hf-hub:me/mine", input_size=32), store, classes=7)
shutil.rmtree(cached)
loaded = weights.load(model, store, classes=7, device=torch.device("cpu"))
assert loaded.digest == model.digest
assert "SiLU" in repr(loaded.network)
print("loaded without the hub")
"""


def test_a_worker_asks_the_hub_for_nothing_not_even_a_configuration(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _HUB_MODEL, str(tmp_path / "home"), str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "loaded without the hub" in done.stdout, done.stderr
