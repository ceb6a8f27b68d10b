"""Whether what is fast is still the same attack: gradients from the same points, and success on other models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jobs.demo import assets
from jobs.runners.curvature import first_images
from pipeline.attack.gradient_transforms import GradientNormPenalty
from pipeline.attack.precision import Precision
from pipeline.attack.recipe import Attack, build
from pipeline.data import codec
from pipeline.data.parts import Images
from pipeline.models import load, predict
from pipeline.models.classifier import Classifier
from pipeline.models.load import ModelSpec
from pipeline.plan import recipe
from pipeline.results.intervals import PooledGain
from tests.bench.figures import Figure

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
EPSILON = recipe.budget("8/255", "linf")
BATCH = 10


@dataclass(frozen=True, eq=False)
class Scene:
    """The demo's source, as it is loaded and as it is attacked, its other targets and its photographs."""

    plain: Classifier
    fast: Classifier
    targets: Mapping[str, Classifier]
    images: Images


def scene(count: int) -> Scene:
    """With so many photographs; `make demo`'s assets have to be there."""
    job = recipe.load(ROOT / "jobs" / "recipes" / "demo.toml").job()
    (spec,) = job.sources
    assert isinstance(spec, ModelSpec)
    targets = {each.name: load.load(each).quicken(CPU) for each in job.targets if each.name != spec.name}
    return Scene(load.load(spec), load.load(spec).quicken(CPU), targets, first_images(job.data, count))


def mi(precision: Precision = "float32") -> Attack:
    """MI-FGSM in ten steps."""
    return build("mi", epsilon=EPSILON, precision=precision)


def penalised(precision: Precision = "float32") -> Attack:
    """The same with the penalty, backward."""
    parts = {"gnp": GradientNormPenalty(form="backward", norm="mean-abs")}
    return build("gnp+mi", epsilon=EPSILON, parts=parts, precision=precision)


def fooled(here: Scene, source: nn.Module, attack: Attack) -> Tensor:
    """Which targets are wrong on which images, as stored: (targets, N) bool."""
    images = here.images
    made = []
    for start in range(0, len(images.keys), BATCH):
        some = slice(start, start + BATCH)
        found = attack(source, codec.to_float(images.pixels[some]), images.labels[some], images.keys[some])
        made.append(codec.quantise(found, images.pixels[some], EPSILON))
    return ~_right(here, torch.cat(made))


def gain(here: Scene, one: Tensor, other: Tensor) -> PooledGain:
    """What one attack gains over another, over targets that are right on the image when it is clean."""
    right = _right(here, here.images.pixels)
    gained = ((one & right).int() - (other & right).int()).sum(dim=0)
    return PooledGain.over(np.asarray(gained), np.asarray(right.sum(dim=0)))


def likeness(here: Scene) -> tuple[list[float], list[float]]:
    """Plain and fast gradients at the points of the fast MI-FGSM's way.

    Returns:
        For each step the share of signs that agree, and the difference's norm over the plain one's.
    """
    images = here.images
    pixels, labels = codec.to_float(images.pixels[:BATCH]), images.labels[:BATCH]
    noted = _Noting(here.fast)
    mi()(noted, pixels, labels, images.keys[:BATCH])
    pairs = [(gradient(here.plain, at, labels), gradient(here.fast, at, labels)) for at in noted.points]
    shares = [float((one.sign() == other.sign()).double().mean()) for one, other in pairs]
    return shares, [float((one - other).norm() / one.norm()) for one, other in pairs]


def agreement() -> list[Figure]:
    """Gradients from the same points, and success end to end, on the demo's photographs."""
    torch.set_num_threads(1)
    assets.prepare(ROOT / "build" / "demo")
    here = scene(20)
    shares, errors = likeness(here)
    found = [
        Figure("signs that agree, the least of ten steps", min(shares), "", (min(shares), max(shares)), 0.999),
        Figure("relative error, the largest of ten steps", max(errors), "", (min(errors), max(errors))),
    ]
    for of in (mi, penalised):
        base, fast = fooled(here, here.plain, of()), fooled(here, here.fast, of())
        low = fooled(here, here.fast, of("bfloat16"))
        found += _equal(f"{of().name}: success of fast less plain", gain(here, fast, base))
        found += _equal(f"{of().name}: success in bfloat16 less float32", gain(here, low, fast))
    return found


def _equal(what: str, found: PooledGain) -> list[Figure]:
    assert found.interval is not None
    low, high = found.interval
    return [
        Figure(what, 100 * found.count / found.n, f"points of {found.n}", (100 * low, 100 * high)),
        Figure(f"{what}: its interval holds 0", float(low <= 0 <= high), "", None, 1),
    ]


class _Noting(nn.Module):
    """A model that keeps what it is shown."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.points = model, list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.points.append(images.detach().clone())
        logits: Tensor = self.model(images)
        return logits


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of the cross-entropy, by images (B, 3, H, W) in [0, 1]."""
    inputs = images.detach().requires_grad_()
    (found,) = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), labels, reduction="sum"), inputs)
    return found


def _right(here: Scene, pixels: Tensor) -> Tensor:
    labels = here.images.labels
    answers: Sequence[Tensor] = [
        predict.predict(target, pixels, labels, batch_size=BATCH, device=CPU).prediction
        for target in here.targets.values()
    ]
    return torch.stack([answer == labels for answer in answers])
