"""The gradient function: a source model and labels, as a map from images to gradients."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Maps images (B, 3, H, W) float in [0, 1] to ∇ₓℓ of the same shape. Where its input requires a gradient, so does
# its output: that is how a transform takes a second derivative of whatever it wraps.
Gradient = Callable[[Tensor], Tensor]


def loss_gradient(model: nn.Module, labels: Tensor) -> Gradient:
    """The gradient of the cross-entropy with respect to the images.

    The loss is summed, not averaged: an image's gradient then does not depend on how many others share its batch.

    Args:
        model: Maps images (B, 3, H, W) in [0, 1] to logits (B, classes).
        labels: (B,) int64, the true classes.
    """

    def gradient(images: Tensor) -> Tensor:
        differentiable = images.requires_grad
        inputs = images if differentiable else images.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(model(inputs), labels, reduction="sum")
            return torch.autograd.grad(loss, inputs, create_graph=differentiable)[0]

    return gradient
