"""Small shards and jobs for tests."""

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

from pipeline.attack.batch import Batch, Pool
from pipeline.attack.draws import Draws
from pipeline.attack.recipe import Attack, build
from pipeline.data import shards
from pipeline.data.codec import Preparation
from pipeline.ledger import Ledger
from pipeline.models.load import ModelSpec, TargetSpec
from pipeline.plan import outline
from pipeline.plan import resolve as plan
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
    path.write_bytes(shards.write(samples))
    return path


def attack(combination: str = "mi", **settings: object) -> Attack:
    """A short attack at 8/255."""
    steps = {} if combination == "noise" or "fgsm" in combination else {"steps": 2}
    return build(combination, **{"epsilon": Fraction(8, 255), **steps, **settings})  # type: ignore[arg-type]


def batch(labels: Tensor | None = None, *, seed: int = 0) -> Batch:
    """What a transform or a view may know of some images: 8/255, two steps, at the first."""
    labels = torch.zeros(2, dtype=torch.int64) if labels is None else labels
    draws = Draws(seed, [str(index) for index in range(len(labels))])
    return Batch(labels, draws, Pool(torch.zeros(1, 3, 8, 8), labels[:1]), 8 / 255, 4 / 255, 2)


def resolve(job: plan.Job, store: str = "") -> plan.Plan:
    """A job's plan; its models' weights are kept in a store, by default one beside the folder of its shards."""
    return plan.resolve(job, Storage(store or str(Path(job.data.shards[0]).parent.parent / "store"), create=True))


def pending(planned: plan.Plan, ledger: Ledger, *, workers: int = 1) -> list[outline.Item]:
    """What a run would hand out."""
    names = planned.outline
    return outline.pending(names, ledger.committed(outline.all_scopes(names)), workers=workers)


def tiny_job(folder: Path, checkpoint: Path, *, attacks: Sequence[Attack] = (), part_size: int = 4) -> plan.Job:
    """A job over every shard in a folder, with the tiny network as source and as target."""
    network = ModelSpec("test_resnet", name="tiny", checkpoint=str(checkpoint), input_size=SIDE)
    data = plan.DataSpec(
        name="tiny",
        shards=(f"{folder}/*.tar",),
        preparation=Preparation(resize=SIDE, crop=SIDE),
        part_size=part_size,
        classes=CLASSES,
    )
    target = TargetSpec(**vars(network))
    return plan.Job(data, (network,), tuple(attacks or (attack(),)), (target,), batch_size=4)


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
        folder: Where it is written.
        checkpoint: Of the source, which is called `tiny`.
        targets: Name → checkpoint; by default the source alone.
        shards: Where else these lie.
        attacks: What stands before its tables, and among `[budget]`.
        data: More of `[data]`.
        engine: What stands in `[engine]`.
    """

    def network(kind: str, name: str, checkpoint: object) -> str:
        return f'[[{kind}]]\nname = "{name}"\nmodel = "test_resnet"\ncheckpoint = "{checkpoint}"\ninput_size = {SIDE}\n'

    scored = "".join(network("targets", *target) for target in (targets or {"tiny": checkpoint}).items())
    path = folder / "recipe.toml"
    path.write_text(
        f'{attacks}\n[data]\nname = "tiny"\nshards = "{shards or f"{folder}/in/*.tar"}"\nclasses = {CLASSES}\n'
        f"preparation = {{ resize = {SIDE}, crop = {SIDE} }}\n{data}\n"
        f"{network('sources', 'tiny', checkpoint)}{scored}[engine]\n{engine}\n"
    )
    return path


def until(true: Callable[[], bool]) -> None:
    """Waits for something that happens in another thread or process."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def write_lesson(folder: Path, store: Path, checkpoint: object) -> Path:
    """The loop's recipe for training in FOLDER/training.toml, on the store of a `tiny_job`: 2 ranks on CPUs."""
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
