"""The L∞ or L2 ball around an image: projection onto it, steepest steps, and random points of it."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pipeline.attack.draws import Draws

BallNorm = Literal["linf", "l2"]


def steepest_step(gradient: Tensor, norm: BallNorm) -> Tensor:
    """The direction of unit norm that raises the loss most: sign(g), or g/‖g‖₂; zero where g is zero."""
    if norm == "linf":
        return gradient.sign()
    scaled = divided_by_largest(gradient)
    return scaled / l2_norm(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)


def project(adversarial: Tensor, images: Tensor, epsilon: float, norm: BallNorm) -> Tensor:
    """The nearest point of the ball, then clipped to [0, 1]; for L2, clipping only shortens the perturbation."""
    if norm == "linf":
        return adversarial.clamp((images - epsilon).clamp_min(0), (images + epsilon).clamp_max(1))
    perturbation = adversarial - images
    tiny = torch.finfo(images.dtype).tiny
    share = (epsilon / l2_norm(perturbation).clamp_min(tiny)).clamp_max(1)
    return (images + perturbation * share).clamp(0, 1)


def random_perturbation(draws: Draws, images: Tensor, epsilon: float, norm: BallNorm) -> Tensor:
    """A perturbation drawn uniformly from the ball, with the shape and dtype of `images`."""
    shape = images.shape[1:]
    if norm == "linf":
        return draws.uniform(*shape, low=-epsilon, high=epsilon).to(images.dtype)
    # In d dimensions, the share of the ball's volume within a radius grows with the radius to the power d.
    radius = draws.uniform().double().pow(1 / shape.numel()).view(-1, 1, 1, 1)
    return (random_direction(draws, shape, "l2").double() * radius * epsilon).to(images.dtype)


def random_direction(draws: Draws, shape: Sequence[int], norm: BallNorm) -> Tensor:
    """A random perturbation of norm 1, (B, *shape) float32: signs for L∞, a point of the unit sphere for L2."""
    return draws.signs(*shape) if norm == "linf" else steepest_step(draws.normal(*shape), "l2")


def divided_by_mean(gradient: Tensor) -> Tensor:
    """The gradient divided by its mean magnitude, g/mean|g|, per image; zero where g is zero."""
    tiny = torch.finfo(gradient.dtype).tiny
    return gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)


def divided_by_largest(gradient: Tensor) -> Tensor:
    """The gradient divided by its largest magnitude, g/max|g|, per image.

    So the squares of a saturated model's tiny gradients do not underflow float32.
    """
    tiny = torch.finfo(gradient.dtype).tiny
    return gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)


def l2_norm(perturbation: Tensor) -> Tensor:
    """‖·‖₂ per image, (B, 1, 1, 1)."""
    norm: Tensor = torch.linalg.vector_norm(perturbation, dim=(1, 2, 3), keepdim=True)
    return norm
