"""The gradient norm penalty (GNP), in the paper's form and in four others."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.attack.ball import divided_by_largest
from pipeline.attack.batch import Batch
from pipeline.attack.gradient import GradientFunction
from pipeline.attack.limits import largest_distance, require_not_negative, require_positive
from pipeline.attack.precision import compute_in

PenaltyForm = Literal["literal", "backward", "central", "exact", "look-ahead"]
PenaltyNorm = Literal["l2", "mean-abs"]


@dataclass(frozen=True)
class GradientNormPenalty:
    """Penalises the norm of the input gradient, so that the attack ends in a flat region of the loss.

    With g = ∇ℓ(x), the step u = r·g/‖g‖ and the Hessian H, the gradient of ℓ − βr‖∇ℓ‖ is g − β·Hu. The forms that
    approximate it agree to first order in r:

        literal      (1+β)·∇ℓ(x) − β·∇ℓ(x+u)                 the paper's; 2 gradients
        backward     (1−β)·∇ℓ(x) + β·∇ℓ(x−u)                 for β ≤ 1 an average, which never reverses the step
        central      ∇ℓ(x) − β/2·(∇ℓ(x+u) − ∇ℓ(x−u))         error of second order in r; 3 gradients
        exact        ∇ℓ(x) − β·H(x)u                         Hessian-vector product, by differentiating twice more

    A fifth form is what TransferAttack's class GNP computes; it *rewards* the norm:

        look-ahead   (1+β)·∇ℓ(x) + β·∇ℓ(x+u)

    If input transforms are random, all gradients of a difference use the same draws; the look-ahead's second gradient
    uses new draws, as in that class.

    Attributes:
        form: Formula of the penalised gradient.
        norm: Norm ‖g‖ per image: `l2`, as in the paper, or `mean-abs`, the mean of |g|, which makes r the mean move of
            a pixel: √(3HW) ≈ 388 times as far at 224 pixels.
        r: Length of the step u, on pixels in [0, 1].
        beta: Coefficient of the penalty.

    References:
        Wu, Luo and Wunsch, "GNP Attack: Transferable Adversarial Examples via Gradient Norm Penalty", ICIP 2023,
        arXiv 2307.04099, eq. 9 and algorithm 1; r = 0.01 and β = 0.8 are theirs.
    """

    form: PenaltyForm = "literal"
    norm: PenaltyNorm = "l2"
    r: float = 0.01
    beta: float = 0.8

    def __post_init__(self) -> None:
        require_positive("r", self.r, most=largest_distance(self.norm), condition=f" with norm = {self.norm!r}")
        require_not_negative("beta", self.beta)

    def __call__(self, gradient: GradientFunction, batch: Batch) -> GradientFunction:
        """The penalised gradient function."""
        beta, draws = self.beta, batch.draws
        if not beta:  # without even its draws
            return gradient

        def penalised(x: Tensor) -> Tensor:
            if self.form == "exact":
                return self._exact(gradient, x, batch)
            position = draws.position()
            g = gradient(x)
            u = self._step(g)
            if self.form == "look-ahead":
                return (1 + beta) * g + beta * gradient(x + u)

            def gradient_same_draws(moved: Tensor) -> Tensor:
                # A difference of gradients under other draws would be a difference of draws.
                with draws.replay(position):
                    return gradient(moved)

            if self.form == "literal":
                return (1 + beta) * g - beta * gradient_same_draws(x + u)
            if self.form == "backward":
                return (1 - beta) * g + beta * gradient_same_draws(x - u)
            return g - beta / 2 * (gradient_same_draws(x + u) - gradient_same_draws(x - u))

        return penalised

    def _exact(self, gradient: GradientFunction, x: Tensor, batch: Batch) -> Tensor:
        count_before = batch.counter.gradients
        # Attention's fast kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), compute_in(batch.precision, x.device):
            differentiable = x.requires_grad
            inputs = x if differentiable else x.detach().requires_grad_()
            g = gradient(inputs)
            u = self._step(g.detach())
            product = _jacobian_product(g, inputs, u, create_graph=differentiable)
        batch.counter.gradients += 2 * (batch.counter.gradients - count_before)
        penalised = g - self.beta * product
        return penalised if differentiable else penalised.detach()

    def _step(self, gradient: Tensor) -> Tensor:
        """The step u = r·g/‖g‖ per image; zero where the gradient is zero."""
        scaled = divided_by_largest(gradient)
        flat = scaled.flatten(1)
        norm = flat.norm(dim=1) if self.norm == "l2" else flat.abs().mean(dim=1)
        return self.r * scaled / norm.clamp_min(torch.finfo(gradient.dtype).tiny).view(-1, 1, 1, 1)


def _jacobian_product(g: Tensor, inputs: Tensor, u: Tensor, *, create_graph: bool) -> Tensor:
    """Ju, for the Jacobian J of g with respect to the inputs; zero where g does not depend on them."""
    # The wrapped function may not be a gradient (a smoothed one is not), and J not symmetric: Jᵀw is linear in w, and
    # its derivative along u is Ju.
    w = torch.zeros_like(g, requires_grad=True)
    transposed_product = None
    if g.requires_grad:
        (transposed_product,) = torch.autograd.grad(g, inputs, w, create_graph=True, allow_unused=True)
    if transposed_product is None:  # a linear model's logit has no second derivative
        return torch.zeros_like(g)
    (product,) = torch.autograd.grad(transposed_product, w, u, create_graph=create_graph)
    return product
