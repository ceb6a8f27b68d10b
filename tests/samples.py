"""Small shards, jobs, plans and recipes for tests."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.attack.batch import AdmixPool, Batch
from pipeline.attack.draws import Draws
from pipeline.attack.recipe import Attack, build
from pipeline.data import shards
from pipeline.data.codec import Preparation
from pipeline.ledger import Ledger
from pipeline.models.spec import ModelSpec, TargetSpec
from pipeline.plan import outline
from pipeline.plan.data_spec import DataSpec
from pipeline.plan.job import Job
from pipeline.plan.resolve import Plan, resolve_job
from pipeline.storage import Storage

CLASSES = 10
SIDE = 32


def jpeg(seed: int, side: int = 40) -> bytes:
    """A smooth random photograph-like JPEG."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def sample(index: int) -> dict[str, Any]:
    """A good sample: key, jpg, cls."""
    return {"__key__": f"image{index:05d}", "jpg": jpeg(index), "cls": str(index % CLASSES).encode()}


def write_shard(path: Path, samples: Sequence[Mapping[str, Any]]) -> Path:
    """A shard on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(shards.write_tar(samples))
    return path


def attack(combination: str = "mi", **settings: object) -> Attack:
    """A short attack at 8/255."""
    steps = {} if combination == "noise" or "fgsm" in combination else {"steps": 2}
    return build(combination, **{"epsilon": Fraction(8, 255), **steps, **settings})  # type: ignore[arg-type]


def batch(labels: Tensor | None = None, *, seed: int = 0) -> Batch:
    """The batch that transforms get: ε = 8/255, two steps, at the first step."""
    labels = torch.zeros(2, dtype=torch.int64) if labels is None else labels
    draws = Draws(seed, [str(index) for index in range(len(labels))])
    return Batch(labels, draws, AdmixPool(torch.zeros(1, 3, 8, 8), labels[:1]), 8 / 255, 4 / 255, 2)


def make_plan(job: Job, store: str = "") -> Plan:
    """A job's plan; its models' weights are kept in a store, by default one beside the folder of its shards."""
    return resolve_job(job, Storage(store or str(Path(job.data.shards[0]).parent.parent / "store"), create=True))


def list_pending(planned: Plan, ledger: Ledger, *, workers: int = 1) -> list[outline.Item]:
    """The items that a run would give to its workers."""
    committed = ledger.list_committed(outline.all_scopes(planned.outline))
    return outline.pending_items(planned.outline, committed, workers=workers)


def tiny_job(folder: Path, checkpoint: Path, *, attacks: Sequence[Attack] = (), part_size: int = 4) -> Job:
    """A job over every shard in a folder, with the tiny network as source and as target."""
    network = ModelSpec("test_resnet", name="tiny", checkpoint=str(checkpoint), input_size=SIDE)
    data = DataSpec(
        name="tiny",
        shards=(f"{folder}/*.tar",),
        preparation=Preparation(resize=SIDE, crop=SIDE),
        part_size=part_size,
        classes=CLASSES,
    )
    target = TargetSpec(**vars(network))
    return Job(data, (network,), tuple(attacks or (attack(),)), (target,), batch_size=4)


def write_recipe(
    folder: Path,
    checkpoint: object,
    *,
    targets: Mapping[str, object] | None = None,
    shards: str = "",
    attacks: str = 'attacks = ["i"]',
    data: str = "",
    engine: str = "",
) -> Path:
    """A recipe for the command line, over every shard in FOLDER/in, with the tiny network as source.

    Args:
        folder: Folder of the recipe.
        checkpoint: Checkpoint of the source, which is called `tiny`.
        targets: Name → checkpoint; by default only the source.
        shards: Pattern of the shards, if they are elsewhere.
        attacks: Lines before the first table.
        data: Additional lines of `[data]`.
        engine: Lines of `[engine]`.
    """

    def model_table(kind: str, name: str, checkpoint: object) -> str:
        return f'[[{kind}]]\nname = "{name}"\nmodel = "test_resnet"\ncheckpoint = "{checkpoint}"\ninput_size = {SIDE}\n'

    target_tables = "".join(model_table("targets", *target) for target in (targets or {"tiny": checkpoint}).items())
    path = folder / "recipe.toml"
    path.write_text(
        f'{attacks}\n[data]\nname = "tiny"\nshards = "{shards or f"{folder}/in/*.tar"}"\nclasses = {CLASSES}\n'
        f"preparation = {{ resize = {SIDE}, crop = {SIDE} }}\n{data}\n"
        f"{model_table('sources', 'tiny', checkpoint)}{target_tables}[engine]\n{engine}\n"
    )
    return path


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a condition that another thread or process fulfils."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def write_training_recipe(folder: Path, store: Path, checkpoint: object) -> Path:
    """The closed loop's training recipe, at FOLDER/training.toml, on the store of a `tiny_job`: 2 ranks on CPUs."""
    text = (Path(__file__).parents[1] / "jobs/recipes/closed-loop-training.toml").read_text()
    for old, new in (
        ("build/loop/weights/test_resnet.safetensors", str(checkpoint)),
        ("build/loop/store", str(store)),
        ("digits-train", "tiny"),
        ("digits-test", "tiny"),
        ('sources = "nfnet"\n', ""),
        ('sources = "mambaout"\n', ""),
        ("gnp+mi+di", "mi"),
        ("batch_size = 64", "batch_size = 4"),
        ("workers = 1", "workers = 2\ngpus_per_worker = 0\ncheckpoint_steps = 2"),
    ):
        assert old in text
        text = text.replace(old, new)
    (recipe := folder / "training.toml").write_text(text)
    return recipe
