"""The gradient function of a source: maps images to the gradient of the objective, through the input transforms."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.attack.batch import Batch
from pipeline.attack.ensemble import logits_for_losses, member_count
from pipeline.attack.input_transforms import InputTransform
from pipeline.attack.losses import Objective
from pipeline.attack.precision import compute_in

# Maps images (B, 3, H, W) float in [0, 1] to ∇ₓℓ of the same shape. If its input requires a gradient, so does its
# output: this is how a gradient transform differentiates the function that it wraps once more.
GradientFunction = Callable[[Tensor], Tensor]


def loss_gradient(
    model: nn.Module, objective: Objective, input_transforms: Sequence[InputTransform], batch: Batch
) -> GradientFunction:
    """The gradient of the objective, averaged over all copies that the input transforms make of an image.

    The objective is summed over images, not averaged, so that an image's gradient does not depend on the batch size.
    Each copy has its own backward pass, so memory does not grow with their number (except where a second derivative is
    needed, for which the graphs of all copies are kept).

    Args:
        model: Maps images (B, 3, H, W) in [0, 1] to logits (B, classes); or an `Ensemble` of such models.
        objective: What the attack maximises.
        input_transforms: Applied to the images in this order.
        batch: Labels, draws, and the precision of the model; the objective, input transforms and all sums have the
            precision of the images.

    Raises:
        ValueError: When called: the logits do not depend on the images in a way that has a gradient.
    """
    copies = math.prod(transform.copies for transform in input_transforms)

    def gradient(images: Tensor) -> Tensor:
        differentiable = images.requires_grad
        inputs = images if differentiable else images.detach().requires_grad_()
        total = torch.zeros_like(images)
        batch.draws.begin_evaluation()
        for numbers in itertools.product(*(range(transform.copies) for transform in input_transforms)):
            with torch.enable_grad():
                transformed = inputs
                for transform, number in zip(input_transforms, numbers, strict=True):
                    transformed = transform(transformed, number, batch)
                with compute_in(batch.precision, images.device):
                    all_logits = [logits.to(images.dtype) for logits in logits_for_losses(model, transformed)]
                objectives = torch.stack([objective(logits) for logits in all_logits])
                batch.counter.gradients += member_count(model)
                # Outside autocast, which would cast the gradients of what was computed in float32 as well.
                with compute_in("tf32" if batch.precision == "tf32" else "float32", images.device):
                    copy_gradient = input_gradient(objectives.mean(), inputs, create_graph=differentiable)
            total = total + copy_gradient
        return total / copies

    return gradient


def input_gradient(value: Tensor, inputs: Tensor, *, create_graph: bool = False) -> Tensor:
    """The gradient of a scalar with respect to the images that it was computed from.

    Raises:
        ValueError: There is none.
    """
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, inputs, create_graph=create_graph, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "the source's logits have no gradient with respect to the images: it detaches them, takes an argmax, or "
            "computes in torch.no_grad()"
        )
    return gradient
