"""Accuracy of the gradient norm penalty's Hessian-vector products, by form, step length and precision.

The penalty is β·Hu, with u = r·g/‖g‖ and H the Hessian of the loss. A difference of two gradients averages H over a
step of length r instead of taking it at a point, and in low precision two close gradients cannot be told apart. So for
every form, length and precision, the product is compared with the exact one in float64, on each image: by direction
(cosine) and by size (relative error). The success of the attack with the same form, length and precision stands beside
it. Together they show which form may run in which precision.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.attack.gradient import GradientFunction
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty, PenaltyForm
from pipeline.attack.precision import Precision, compute_in
from pipeline.attack.recipe import build
from pipeline.data import codec
from pipeline.data.parts import Images
from pipeline.results.intervals import PooledRate, Rate

MeasuredPrecision = Literal["float64", Precision]
# How the product is approximated, named as the penalty's forms; the look-ahead evaluates the same points as `literal`.
Product = Literal["literal", "backward", "central", "exact"]

RADII = (0.001, 0.01, 0.1, 1.0, 4.0)


@dataclass(frozen=True)
class ProductAccuracy:
    """How close an approximate Hessian-vector product is to the exact one, over images.

    Attributes:
        form: The approximation.
        r: Length of the step, L2 on [0, 1].
        precision: Precision of the gradients.
        cosines: Cosine of the angle to the exact product, one per image; NaN where either is zero.
        errors: ‖approximation − exact‖ / ‖exact‖, one per image.
    """

    form: Product
    r: float
    precision: MeasuredPrecision
    cosines: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class AttackSuccess:
    """Success of an attack with the penalty, in one precision.

    Attributes:
        form: Form of the penalty; empty for the attack without it.
        r: Length of its step.
        precision: Precision of the source's gradients; targets are scored in float32.
        success: Success pooled over all targets, among the images that each classifies correctly.
        by_target: Name of the target → its success.
    """

    form: PenaltyForm | Literal[""]
    r: float
    precision: MeasuredPrecision
    success: PooledRate
    by_target: Mapping[str, Rate]

    def to_json(self) -> dict[str, Any]:
        """The entry of curvature.json, where success by target is called `each`."""
        values = asdict(self)
        values["each"] = values.pop("by_target")
        return values


def available_precisions(device: torch.device) -> tuple[MeasuredPrecision, ...]:
    """The precisions of a device: TF32 from NVIDIA's Ampere on."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return get_args(MeasuredPrecision)
    return ("float64", "float32", "bfloat16")


def product_accuracies(
    source: nn.Module, images: Images, *, device: torch.device, radii: Sequence[float] = RADII
) -> Iterator[ProductAccuracy]:
    """Compares every form, length and precision with the exact product, image by image.

    Args:
        source: Maps images (B, 3, H, W) in [0, 1] to logits; on `device`, in float32.
        images: The images at which products are taken.
        device: Device of the source.
        radii: Lengths r.
    """
    source64 = copy.deepcopy(source).double()
    points, exact_products = [], []
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        image = codec.to_float(pixels.unsqueeze(0)).to(device, torch.float64)
        label = label.view(1).to(device)
        gradient = _gradient_function(source64, label)
        at_image = gradient(image)
        direction = at_image / at_image.norm()
        points.append((image, label, direction))
        exact_products.append(_product(gradient, image, direction, form="exact", r=1.0))
    for precision in available_precisions(device):
        model = source64 if precision == "float64" else source
        for form in get_args(Product):
            # The exact product is linear in r: one length stands for all of them.
            for lengths in [[r] for r in radii] if form != "exact" else [list(radii)]:
                cosines, errors = [], []
                for (image, label, direction), exact in zip(points, exact_products, strict=True):
                    with compute_in("float32" if precision == "float64" else precision, device):
                        gradient = _gradient_function(model, label)
                        cast = image if precision == "float64" else image.float()
                        product = _product(gradient, cast, direction.to(cast), form=form, r=lengths[0])
                        product = product.double() / lengths[0]
                    cosines.append(_cosine(product, exact))
                    errors.append(float((product - exact).norm() / exact.norm()))
                for r in lengths:
                    yield ProductAccuracy(form, r, precision, tuple(cosines), tuple(errors))


def attack_successes(
    source: nn.Module,
    targets: Mapping[str, nn.Module],
    images: Images,
    *,
    device: torch.device,
    epsilon: Fraction,
    steps: int,
    radii: Sequence[float] = RADII,
    batch_size: int = 32,
) -> Iterator[AttackSuccess]:
    """Success of MI-FGSM without the penalty, and with every form and length of it, in every precision.

    Args:
        source: The model attacked, on `device`.
        targets: Name → model, on `device`.
        images: Originals.
        device: Device of all models.
        epsilon: Budget, L∞.
        steps: T.
        radii: Lengths r.
        batch_size: Images per batch.
    """
    clean_correct = {
        name: _predict(model, images.pixels, device, batch_size) == images.labels for name, model in targets.items()
    }
    budget: dict[str, Any] = {"epsilon": epsilon, "steps": steps}
    forms = get_args(PenaltyForm)
    penalties: list[tuple[PenaltyForm | Literal[""], float]] = [("", 0.0), *itertools.product(forms, radii)]
    for precision in available_precisions(device):
        if precision == "float64":
            continue  # attacks do not run in it
        for form, r in penalties:
            name, parts = ("gnp+mi", {"gnp": GradientNormPenalty(form, r=r)}) if form else ("mi", {})
            attack = build(name, parts=parts, precision=precision, **budget)
            batches = []
            for start in range(0, len(images.keys), batch_size):
                batch = slice(start, start + batch_size)
                pixels = images.pixels[batch].to(device)
                labels = images.labels[batch].to(device)
                batch_adversarial = attack(source, codec.to_float(pixels), labels, images.keys[batch])
                batches.append(codec.quantise(batch_adversarial, pixels, epsilon).cpu())
            adversarial = torch.cat(batches)
            fooled = {
                name: (_predict(model, adversarial, device, batch_size) != images.labels) & clean_correct[name]
                for name, model in targets.items()
            }
            success = PooledRate.over(_targets_per_image(fooled, images), _targets_per_image(clean_correct, images))
            by_target = {name: Rate(int(fooled[name].sum()), int(clean_correct[name].sum())) for name in targets}
            yield AttackSuccess(form, r, precision, success, by_target)


def table(accuracies: Sequence[ProductAccuracy], successes: Sequence[AttackSuccess]) -> list[dict[str, Any]]:
    """One row per form, length and precision: medians over images, and success pooled over targets."""
    success_by_key = {(str(row.form or "without"), row.r, str(row.precision)): row.success for row in successes}
    accuracy_by_key = {(str(row.form), row.r, str(row.precision)): row for row in accuracies}
    rows = []
    for key in dict.fromkeys([*accuracy_by_key, *success_by_key]):
        accuracy, success = accuracy_by_key.get(key), success_by_key.get(key)
        rows.append(
            {
                **dict(zip(("form", "r", "precision"), key, strict=True)),
                "cosine": _median(accuracy.cosines) if accuracy else None,
                "relative_error": _median(accuracy.errors) if accuracy else None,
                "images": len(accuracy.cosines) if accuracy else None,
                "success": success.rate if success else None,
                "interval": success.interval if success else None,
                "successes": success.count if success else None,
                "n": success.n if success else None,
            }
        )
    return rows


def _gradient_function(model: nn.Module, label: Tensor) -> GradientFunction:
    """Gradient of the cross-entropy, (B, 3, H, W) → (B, 3, H, W); differentiable if its input requires a gradient."""

    def gradient(images: Tensor) -> Tensor:
        differentiable = images.requires_grad
        inputs = images if differentiable else images.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(inputs)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = nn.functional.cross_entropy(logits, label, reduction="sum")
            (at_inputs,) = torch.autograd.grad(loss, inputs, create_graph=differentiable)
        return at_inputs

    return gradient


def _product(gradient: GradientFunction, image: Tensor, direction: Tensor, *, form: Product, r: float) -> Tensor:
    """The product Hu, exact or approximated by a difference of gradients, with u = r·direction."""
    step = r * direction
    if form == "exact":
        inputs = image.detach().requires_grad_()
        with torch.enable_grad():
            (product,) = torch.autograd.grad((gradient(inputs) * step).sum(), inputs)
        return product.detach()
    if form == "literal":
        return gradient(image + step) - gradient(image)
    if form == "backward":
        return gradient(image) - gradient(image - step)
    return (gradient(image + step) - gradient(image - step)) / 2


def _predict(model: nn.Module, pixels: Tensor, device: torch.device, batch_size: int) -> Tensor:
    """Predicted classes, (N,) int64 on the CPU, of pixels (N, 3, H, W) uint8."""
    with torch.inference_mode():
        batches = torch.split(pixels, batch_size)
        return torch.cat([model(codec.to_float(batch.to(device))).argmax(dim=1).cpu() for batch in batches])


def _cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle; NaN where either is zero. torch's own shortens very short vectors."""
    norm_a, norm_b = a.norm(), b.norm()
    return float((a / norm_a * (b / norm_b)).sum()) if norm_a and norm_b else math.nan


def _targets_per_image(by_target: Mapping[str, Tensor], images: Images) -> np.ndarray:
    """Number of targets for which each image is marked, (N,)."""
    if not by_target:
        return np.zeros(len(images.keys), int)
    return np.asarray(np.sum([marked.numpy() for marked in by_target.values()], axis=0))


def _median(values: Sequence[float]) -> float:
    return float(np.nanmedian(values))
