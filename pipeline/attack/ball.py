"""The ball around an image that an attack may not leave, and how its norm measures a gradient."""

from typing import Literal

import torch
from torch import Tensor

BallNorm = Literal["linf", "l2"]


def normalised(gradient: Tensor, norm: BallNorm) -> Tensor:
    """g/mean|g| per image for L∞, g/‖g‖₂ for L2; zero where the gradient is.

    MI-FGSM's published normalisation is by ‖g‖₁; the mean of |g| differs by a constant factor, which sign does not see.
    """
    tiny = torch.finfo(gradient.dtype).tiny
    if norm == "linf":
        return gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
    # Scaled by the largest entry first: the squares of a saturated model's tiny gradients underflow float32.
    scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
    return scaled / length(scaled).clamp_min(tiny)


def direction(velocity: Tensor, norm: BallNorm) -> Tensor:
    """The steepest step of unit norm: sign(v), or v/‖v‖₂."""
    return velocity.sign() if norm == "linf" else normalised(velocity, "l2")


def projected(adversarial: Tensor, images: Tensor, epsilon: float, norm: BallNorm) -> Tensor:
    """The nearest point of the ball, cut off at the borders of [0, 1], which for L2 only shortens the way."""
    if norm == "linf":
        return adversarial.clamp((images - epsilon).clamp_min(0), (images + epsilon).clamp_max(1))
    perturbation = adversarial - images
    tiny = torch.finfo(images.dtype).tiny
    share = (epsilon / length(perturbation).clamp_min(tiny)).clamp_max(1)
    return (images + perturbation * share).clamp(0, 1)


def length(perturbation: Tensor) -> Tensor:
    """‖·‖₂ per image, (B, 1, 1, 1)."""
    found: Tensor = torch.linalg.vector_norm(perturbation, dim=(1, 2, 3), keepdim=True)
    return found
