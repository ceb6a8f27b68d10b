"""The ball around an image that an attack may not leave, and the steepest way through it."""

from typing import Literal

import torch
from torch import Tensor

BallNorm = Literal["linf", "l2"]


def direction(velocity: Tensor, norm: BallNorm) -> Tensor:
    """The steepest step of unit norm: sign(v), or v/‖v‖₂; zero where v is."""
    if norm == "linf":
        return velocity.sign()
    # Scaled by the largest entry first: the squares of a saturated model's tiny gradients underflow float32.
    tiny = torch.finfo(velocity.dtype).tiny
    scaled = velocity / velocity.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
    return scaled / length(scaled).clamp_min(tiny)


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
