"""Agreement of the optimized model with the plain one: gradients at the same points, and success on other models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jobs.demo import assets
from jobs.runners.curvature import first_images
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.precision import Precision
from pipeline.attack.recipe import Attack, build
from pipeline.data import codec
from pipeline.data.parts import Images
from pipeline.models import predict
from pipeline.models.classifier import Classifier
from pipeline.models.load import load_model
from pipeline.models.spec import ModelSpec
from pipeline.plan.recipe_fields import parse_epsilon
from pipeline.plan.recipe_reader import load_recipe
from pipeline.results.intervals import PooledGain
from tests.bench.figures import Figure

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
EPSILON = parse_epsilon("8/255", "linf")
BATCH = 10


@dataclass(frozen=True, eq=False)
class Scene:
    """The demo's source, plain and optimized, its other targets and its photographs."""

    plain: Classifier
    fast: Classifier
    targets: Mapping[str, Classifier]
    images: Images


def scene(count: int) -> Scene:
    """Loads the scene with `count` photographs; needs the assets of `make demo`."""
    job = load_recipe(ROOT / "jobs" / "recipes" / "demo.toml").job()
    (spec,) = job.sources
    assert isinstance(spec, ModelSpec)
    targets = {target.name: load_model(target).optimize_for(CPU) for target in job.targets if target.name != spec.name}
    return Scene(load_model(spec), load_model(spec).optimize_for(CPU), targets, first_images(job.data, count))


def mi(precision: Precision = "float32") -> Attack:
    """MI-FGSM in ten steps."""
    return build("mi", epsilon=EPSILON, precision=precision)


def penalised(precision: Precision = "float32") -> Attack:
    """MI-FGSM with the penalty by backward difference."""
    parts = {"gnp": GradientNormPenalty(form="backward", norm="mean-abs")}
    return build("gnp+mi", epsilon=EPSILON, parts=parts, precision=precision)


def fooled(here: Scene, source: nn.Module, attack: Attack) -> Tensor:
    """Which targets misclassify which adversarial images, quantised as when stored: (targets, N) bool."""
    images = here.images
    stored = []
    for start in range(0, len(images.keys), BATCH):
        batch = slice(start, start + BATCH)
        pixels = images.pixels[batch]
        adversarial = attack(source, codec.to_float(pixels), images.labels[batch], images.keys[batch])
        stored.append(codec.quantise(adversarial, pixels, EPSILON))
    return ~_correct(here, torch.cat(stored))


def gain(here: Scene, fooled_by: Tensor, fooled_by_base: Tensor) -> PooledGain:
    """Gain of an attack over a base, on targets that classify the clean image correctly."""
    correct = _correct(here, here.images.pixels)
    gained = ((fooled_by & correct).int() - (fooled_by_base & correct).int()).sum(dim=0)
    return PooledGain.over(np.asarray(gained), np.asarray(correct.sum(dim=0)))


def gradient_agreement(here: Scene) -> tuple[list[float], list[float]]:
    """Compares plain and fast gradients at the points that MI-FGSM visits on the fast model.

    Returns:
        Per step, the share of equal signs, and the relative error of the fast gradient.
    """
    images = here.images
    pixels, labels = codec.to_float(images.pixels[:BATCH]), images.labels[:BATCH]
    recorder = _Recorder(here.fast)
    mi()(recorder, pixels, labels, images.keys[:BATCH])
    pairs = [(gradient(here.plain, point, labels), gradient(here.fast, point, labels)) for point in recorder.points]
    shares = [float((plain.sign() == fast.sign()).double().mean()) for plain, fast in pairs]
    return shares, [float((plain - fast).norm() / plain.norm()) for plain, fast in pairs]


def agreement() -> list[Figure]:
    """Gradients from the same points, and success end to end, on the demo's photographs."""
    torch.set_num_threads(1)
    assets.prepare(ROOT / "build" / "demo")
    here = scene(20)
    shares, errors = gradient_agreement(here)
    figures = [
        Figure("signs that agree, the least of ten steps", min(shares), "", (min(shares), max(shares)), 0.999),
        Figure("relative error, the largest of ten steps", max(errors), "", (min(errors), max(errors))),
    ]
    for attack in (mi, penalised):
        plain = fooled(here, here.plain, attack())
        fast = fooled(here, here.fast, attack())
        bfloat16 = fooled(here, here.fast, attack("bfloat16"))
        figures += _gain_figures(f"{attack().name}: success of fast less plain", gain(here, fast, plain))
        figures += _gain_figures(f"{attack().name}: success in bfloat16 less float32", gain(here, bfloat16, fast))
    return figures


def _gain_figures(what: str, gained: PooledGain) -> list[Figure]:
    assert gained.interval is not None
    low, high = gained.interval
    return [
        Figure(what, 100 * gained.count / gained.n, f"points of {gained.n}", (100 * low, 100 * high)),
        Figure(f"{what}: its interval holds 0", float(low <= 0 <= high), "", None, 1),
    ]


class _Recorder(nn.Module):
    """A model that records its inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.points = model, list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.points.append(images.detach().clone())
        logits: Tensor = self.model(images)
        return logits


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the cross-entropy by images (B, 3, H, W) in [0, 1]."""
    inputs = images.detach().requires_grad_()
    (gradients,) = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), labels, reduction="sum"), inputs)
    return gradients


def _correct(here: Scene, pixels: Tensor) -> Tensor:
    labels = here.images.labels
    answers: Sequence[Tensor] = [
        predict.predict(target, pixels, labels, batch_size=BATCH, device=CPU).prediction
        for target in here.targets.values()
    ]
    return torch.stack([answer == labels for answer in answers])
