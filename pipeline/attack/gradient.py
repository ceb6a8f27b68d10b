"""The gradient function: a source, what is to be raised, and views, as a map from images to gradients."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.attack.batch import Batch
from pipeline.attack.ensemble import answers, members
from pipeline.attack.input_transforms import View
from pipeline.attack.losses import Objective
from pipeline.attack.precision import computing

# Maps images (B, 3, H, W) float in [0, 1] to ∇ₓℓ of the same shape. Where its input requires a gradient, so does
# its output: that is how a transform takes a second derivative of whatever it wraps.
Gradient = Callable[[Tensor], Tensor]


def loss_gradient(model: nn.Module, objective: Objective, views: Sequence[View], batch: Batch) -> Gradient:
    """The gradient of the objective, averaged over every copy that the views make of an image.

    The objective is summed over images, not averaged: an image's gradient then does not depend on how many others share
    its batch. Each copy is a backward pass of its own, so memory does not grow with their number (but where a second
    derivative is wanted, for which every copy's graph is kept).

    Args:
        model: Maps images (B, 3, H, W) in [0, 1] to logits (B, classes); or an `Ensemble` of such.
        objective: What is raised.
        views: What the model sees of the images, applied in this order.
        batch: The images' labels and draws, and in which precision the model computes; the loss, views and all sums are
            in that of the images.
    """
    copies = math.prod(view.copies for view in views)

    def gradient(images: Tensor) -> Tensor:
        differentiable = images.requires_grad
        inputs = images if differentiable else images.detach().requires_grad_()
        total = torch.zeros_like(images)
        batch.draws.evaluate()
        for numbers in itertools.product(*(range(view.copies) for view in views)):
            with torch.enable_grad():
                seen = inputs
                for view, number in zip(views, numbers, strict=True):
                    seen = view(seen, number, batch)
                with computing(batch.precision, images.device):
                    heard = [logits.to(images.dtype) for logits in answers(model, seen)]
                said = torch.stack([objective(logits) for logits in heard])
                batch.tally.gradients += members(model)
                with computing(batch.precision, images.device):
                    (found,) = torch.autograd.grad(said.mean(), inputs, create_graph=differentiable)
            total = total + found
        return total / copies

    return gradient
