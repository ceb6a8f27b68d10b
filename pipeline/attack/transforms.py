"""Transforms of the gradient function: `Gradient -> Gradient`.

Each is a frozen dataclass that is its own configuration, provenance and behaviour. A transform wraps the function and
not its value, because it may have to evaluate it elsewhere.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.attack.gradient import Gradient

Form = Literal["literal", "backward", "central", "exact", "look-ahead"]
Norm = Literal["l2", "mean-abs"]


@dataclass(frozen=True)
class GradientNormPenalty:
    """Penalises the norm of the input gradient, so that the attack ends in a flat region of the loss.

    With g = ∇ℓ(x), the step u = r·g/‖g‖ and the Hessian H, the gradient of ℓ − βr‖∇ℓ‖ is g − β·Hu. The forms that
    approximate it agree to first order in r:

        literal      (1+β)·∇ℓ(x) − β·∇ℓ(x+u)                 the paper's; 2 gradients
        backward     (1−β)·∇ℓ(x) + β·∇ℓ(x−u)                 for β ≤ 1 an average, which never turns the step round
        central      ∇ℓ(x) − β/2·(∇ℓ(x+u) − ∇ℓ(x−u))         error of second order in r; 3 gradients
        exact        ∇ℓ(x) − β·H(x)u                         Hessian-vector product by double backward

    One is kept under its own name because it is what TransferAttack's class GNP computes; it *rewards* the norm:

        look-ahead   (1+β)·∇ℓ(x) + β·∇ℓ(x+u)

    Attributes:
        form: Which of the above.
        norm: What ‖g‖ is, per image: `l2`, as in the paper, or `mean-abs`, the mean of |g|, which makes r the mean
            move of a pixel: √(3HW) ≈ 388 times as far at 224 pixels.
        r: Length of the step u, on pixels in [0, 1].
        beta: The penalty's coefficient.

    References:
        Wu, Luo and Wunsch, "GNP Attack: Transferable Adversarial Examples via Gradient Norm Penalty", ICIP 2023,
        arXiv 2307.04099, eq. 9 and algorithm 1; r = 0.01 and β = 0.8 are theirs.
    """

    form: Form = "literal"
    norm: Norm = "l2"
    r: float = 0.01
    beta: float = 0.8

    def __post_init__(self) -> None:
        # Pixels lie in [0, 1]: no two differ by more than 1, no two images of 577 x 577 by more than 1,000 in L2.
        most = 1000 if self.norm == "l2" else 1
        if not 0 < self.r <= most:
            raise ValueError(f"r = {self.r}: must be positive, and at most {most} with norm = {self.norm!r}")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta = {self.beta}: must be a number from 0")

    def __call__(self, gradient: Gradient) -> Gradient:
        """The penalised gradient function."""
        beta = self.beta

        def penalised(images: Tensor) -> Tensor:
            if self.form == "exact":
                return self._exact(gradient, images)
            here = gradient(images)
            step = self._step(here)
            if self.form == "literal":
                return (1 + beta) * here - beta * gradient(images + step)
            if self.form == "backward":
                return (1 - beta) * here + beta * gradient(images - step)
            if self.form == "central":
                return here - beta / 2 * (gradient(images + step) - gradient(images - step))
            return (1 + beta) * here + beta * gradient(images + step)

        return penalised

    def _exact(self, gradient: Gradient, images: Tensor) -> Tensor:
        with torch.enable_grad():
            differentiable = images.requires_grad
            inputs = images if differentiable else images.detach().requires_grad_()
            here = gradient(inputs)
            step = self._step(here.detach())
            # H is symmetric, so that the vector-Jacobian product of the gradient is Hu.
            (product,) = torch.autograd.grad(here, inputs, step, create_graph=differentiable)
        penalised = here - self.beta * product
        return penalised if differentiable else penalised.detach()

    def _step(self, gradient: Tensor) -> Tensor:
        """U = r·g/‖g‖ per image; zero where the gradient is."""
        # Scaled by the largest entry first: the squares of a saturated model's tiny gradients underflow float32.
        tiny = torch.finfo(gradient.dtype).tiny
        largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
        scaled = gradient / largest
        flat = scaled.flatten(1)
        norm = flat.norm(dim=1) if self.norm == "l2" else flat.abs().mean(dim=1)
        return self.r * scaled / norm.clamp_min(tiny).view(-1, 1, 1, 1)


Transform = GradientNormPenalty
