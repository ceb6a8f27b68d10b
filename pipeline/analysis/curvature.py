"""How well each form of the gradient norm penalty knows the curvature that it penalises, in which precision.

The penalty is β·Hu, u = r·g/‖g‖ and H the Hessian of the loss. A difference of two gradients takes H along a way of
length r instead of at a point, and in few bits two gradients that lie close together cannot be told apart. So for every
form, length and precision the product is held against the true one, in float64, on each image: by its direction (the
cosine of the angle between them) and by its size. Beside it stands what the attack with that form, length and precision
achieves. Together they say which form may run in which precision.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pipeline.attack.gradient_transforms import Form, GradientNormPenalty
from pipeline.attack.precision import Precision, computing
from pipeline.attack.recipe import build
from pipeline.data import codec
from pipeline.data.parts import Images
from pipeline.results.intervals import PooledRate, Rate

AnyPrecision = Literal["float64", Precision]
# What approximates the product, as the penalty's forms have it; the look-ahead takes the literal form's points.
Product = Literal["literal", "backward", "central", "exact"]

RADII = (0.001, 0.01, 0.1, 1.0, 4.0)
_COLOURS = {"float64": "#000000", "float32": "#0072B2", "tf32": "#009E73", "bfloat16": "#D55E00"}


@dataclass(frozen=True)
class Likeness:
    """How like the true product an approximation is, over images.

    Attributes:
        form: What approximates it.
        r: Length of the step, L2 on [0, 1].
        precision: Of the gradients.
        cosines: Of the angle to the true product, one an image; NaN where either is zero.
        errors: ‖approximation − true‖ / ‖true‖, one an image.
    """

    form: Product
    r: float
    precision: AnyPrecision
    cosines: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Reach:
    """What an attack with the penalty achieves in one precision.

    Attributes:
        form: The penalty's; empty for the attack without it.
        r: Its length.
        precision: Of the source's gradients; targets are scored in float32.
        success: Over all targets, among the images that each classifies correctly.
        each: The same by target: name → rate.
    """

    form: Form | Literal[""]
    r: float
    precision: AnyPrecision
    success: PooledRate
    each: Mapping[str, Rate]


def precisions(device: torch.device) -> tuple[AnyPrecision, ...]:
    """Those that a device has: TF32 from NVIDIA's Ampere on."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return get_args(AnyPrecision)
    return ("float64", "float32", "bfloat16")


def likenesses(
    source: nn.Module, images: Images, *, device: torch.device, radii: Sequence[float] = RADII
) -> Iterator[Likeness]:
    """Every form, length and precision against the true product, image by image.

    Args:
        source: Maps images (B, 3, H, W) in [0, 1] to logits; on `device`, in float32.
        images: At whose pixels.
        device: Where.
        radii: Lengths r.
    """
    exact = copy.deepcopy(source).double()
    truths, points = [], []
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        at = codec.to_float(pixels.unsqueeze(0)).to(device, torch.float64)
        gradient = _gradient(exact, label.view(1).to(device))
        here = gradient(at)
        points.append((at, label.view(1).to(device), here / here.norm()))
        truths.append(_product(gradient, at, points[-1][2], form="exact", r=1.0))
    for precision in precisions(device):
        model = exact if precision == "float64" else source
        for form in get_args(Product):
            # The exact product is linear in r: one length tells of all.
            for lengths in [[r] for r in radii] if form != "exact" else [list(radii)]:
                cosines, errors = [], []
                for (at, label, along), truth in zip(points, truths, strict=True):
                    with computing("float32" if precision == "float64" else precision, device):
                        gradient = _gradient(model, label)
                        low = at if precision == "float64" else at.float()
                        found = _product(gradient, low, along.to(low), form=form, r=lengths[0]).double() / lengths[0]
                    cosines.append(_cosine(found, truth))
                    errors.append(float((found - truth).norm() / truth.norm()))
                for r in lengths:
                    yield Likeness(form, r, precision, tuple(cosines), tuple(errors))


def reaches(
    source: nn.Module,
    targets: Mapping[str, nn.Module],
    images: Images,
    *,
    device: torch.device,
    epsilon: Fraction,
    steps: int,
    radii: Sequence[float] = RADII,
    batch_size: int = 32,
) -> Iterator[Reach]:
    """MI-FGSM with every form, length and precision, on every target.

    Args:
        source: The model attacked, on `device`.
        targets: Name → model, on `device`.
        images: Originals.
        device: Where.
        epsilon: The budget, L∞.
        steps: T.
        radii: Lengths r.
        batch_size: Images at a time.
    """
    right = {
        name: _answers(model, images.pixels, device, batch_size) == images.labels for name, model in targets.items()
    }
    told: dict[str, Any] = {"epsilon": epsilon, "steps": steps}
    penalties: list[tuple[Form | Literal[""], float]] = [("", 0.0), *itertools.product(get_args(Form), radii)]
    for precision in precisions(device):
        if precision == "float64":
            continue  # nobody attacks in it
        for form, r in penalties:
            name, parts = ("gnp+mi", {"gnp": GradientNormPenalty(form, r=r)}) if form else ("mi", {})
            attack, made = build(name, parts=parts, precision=precision, **told), []
            for start in range(0, len(images.keys), batch_size):
                some = slice(start, start + batch_size)
                pixels = images.pixels[some].to(device)
                found = attack(source, codec.to_float(pixels), images.labels[some].to(device), images.keys[some])
                made.append(codec.quantise(found, pixels, epsilon).cpu())
            adversarial = torch.cat(made)
            wrong = {
                name: (_answers(model, adversarial, device, batch_size) != images.labels) & right[name]
                for name, model in targets.items()
            }
            each = {name: Rate(int(wrong[name].sum()), int(right[name].sum())) for name in targets}
            yield Reach(form, r, precision, PooledRate.over(_total(wrong, images), _total(right, images)), each)


def table(found: Sequence[Likeness], reached: Sequence[Reach]) -> list[dict[str, Any]]:
    """One row for each form, length and precision: medians over images, success over targets together."""
    successes = {(str(reach.form or "without"), reach.r, str(reach.precision)): reach.success for reach in reached}
    likeness = {(str(each.form), each.r, str(each.precision)): each for each in found}
    rows = []
    for key in dict.fromkeys([*likeness, *successes]):
        near, success = likeness.get(key), successes.get(key)
        rows.append(
            {
                **dict(zip(("form", "r", "precision"), key, strict=True)),
                "cosine": _median(near.cosines) if near else None,
                "relative_error": _median(near.errors) if near else None,
                "images": len(near.cosines) if near else None,
                "success": success.rate if success else None,
                "interval": success.interval if success else None,
                "successes": success.count if success else None,
                "n": success.n if success else None,
            }
        )
    return rows


def draw(found: Sequence[Likeness], reached: Sequence[Reach], *, title: str) -> Figure:
    """For each form, likeness to the true product above and success below, along r, a line a precision."""
    forms, rows = get_args(Product), table(found, reached)
    figure = Figure(figsize=(3.2 * len(forms), 5.6), layout="constrained")
    panels = figure.subplots(2, len(forms), sharex=True, sharey="row", squeeze=False)
    for above, below, form in zip(*panels, forms, strict=True):
        for precision, colour in _COLOURS.items():
            near = [each for each in found if (each.form, each.precision) == (form, precision)]
            _draw_line(
                above,
                [each.r for each in near],
                [np.nanquantile(each.cosines, (0.25, 0.5, 0.75)) for each in near],
                colour,
                precision,
            )
            made = [row for row in rows if (row["form"], row["precision"]) == (form, precision) and row["interval"]]
            points = [(low, row["success"], high) for row in made for low, high in [row["interval"]]]
            _draw_line(below, [row["r"] for row in made], points, colour, precision)
        for row in rows:
            if (row["form"], row["precision"]) == ("without", "float32") and row["success"] is not None:
                below.axhline(row["success"], color="#666666", linestyle=":", linewidth=1)
        above.set_title(form, fontsize=10)
        above.set_xscale("log")
        below.set_xlabel("r (L2)")
        below.set_ylim(0, 1)
        for axis in (above, below):
            axis.grid(alpha=0.25)
    panels[0][0].set_ylabel("cosine to the true H·u")
    panels[1][0].set_ylabel("transfer (dotted: without)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)))
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_line(axis: Any, radii: Sequence[float], bounds: Sequence[Any], colour: str, label: str) -> None:
    """A line through the middle of each (low, middle, high), and a band from low to high; nothing of nothing."""
    if radii:
        low, middle, high = zip(*bounds, strict=True)
        axis.plot(radii, middle, "o-", color=colour, label=label, markersize=3)
        axis.fill_between(radii, low, high, color=colour, alpha=0.12)


def _gradient(model: nn.Module, label: Tensor) -> Callable[[Tensor], Tensor]:
    """∇ of the cross-entropy, differentiable where its input is."""

    def gradient(images: Tensor) -> Tensor:
        differentiable = images.requires_grad
        inputs = images if differentiable else images.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(inputs)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = nn.functional.cross_entropy(logits, label, reduction="sum")
            (found,) = torch.autograd.grad(loss, inputs, create_graph=differentiable)
        return found

    return gradient


def _product(gradient: Callable[[Tensor], Tensor], at: Tensor, along: Tensor, *, form: Product, r: float) -> Tensor:
    """H·u, or what stands for it, with u = r·along."""
    step = r * along
    if form == "exact":
        inputs = at.detach().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad((gradient(inputs) * step).sum(), inputs)
        return found.detach()
    if form == "literal":
        return gradient(at + step) - gradient(at)
    if form == "backward":
        return gradient(at) - gradient(at - step)
    return (gradient(at + step) - gradient(at - step)) / 2


def _answers(model: nn.Module, pixels: Tensor, device: torch.device, batch_size: int) -> Tensor:
    with torch.inference_mode():
        return torch.cat(
            [model(codec.to_float(some.to(device))).argmax(dim=1).cpu() for some in torch.split(pixels, batch_size)]
        )


def _cosine(one: Tensor, other: Tensor) -> float:
    """Of the angle between two; NaN where either is zero. torch's takes tiny vectors for shorter than they are."""
    first, second = one.norm(), other.norm()
    return float((one / first * (other / second)).sum()) if first and second else math.nan


def _total(found: Mapping[str, Tensor], images: Images) -> np.ndarray:
    """Image by image, of how many targets something holds, (N,)."""
    return np.sum([each.numpy() for each in found.values()], axis=0) if found else np.zeros(len(images.keys), int)


def _median(values: Sequence[float]) -> float:
    return float(np.nanmedian(values))
