"""Transforms of the gradient function: `Gradient -> Gradient`.

Each is a frozen dataclass that is its own configuration, provenance and behaviour. A transform wraps the function and
not its value, because it may have to evaluate it elsewhere. What it remembers from step to step is made anew for each
batch.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.attack.batch import Batch
from pipeline.attack.gradient import Gradient
from pipeline.attack.precision import computing

Form = Literal["literal", "backward", "central", "exact", "look-ahead"]
Norm = Literal["l2", "mean-abs"]
Kernel = Literal["gaussian", "uniform", "linear"]


class Transform(Protocol):
    """What every class below is, and whatever else wants to be one: a frozen dataclass."""

    def __call__(self, gradient: Gradient, batch: Batch) -> Gradient:
        """The transformed gradient function, for the images of one call."""


@dataclass(frozen=True)
class GradientNormPenalty:
    """Penalises the norm of the input gradient, so that the attack ends in a flat region of the loss.

    With g = ∇ℓ(x), the step u = r·g/‖g‖ and the Hessian H, the gradient of ℓ − βr‖∇ℓ‖ is g − β·Hu. The forms that
    approximate it agree to first order in r:

        literal      (1+β)·∇ℓ(x) − β·∇ℓ(x+u)                 the paper's; 2 gradients
        backward     (1−β)·∇ℓ(x) + β·∇ℓ(x−u)                 for β ≤ 1 an average, which never turns the step round
        central      ∇ℓ(x) − β/2·(∇ℓ(x+u) − ∇ℓ(x−u))         error of second order in r; 3 gradients
        exact        ∇ℓ(x) − β·H(x)u                         Hessian-vector product, by differentiating twice more

    One is kept under its own name because it is what TransferAttack's class GNP computes; it *rewards* the norm:

        look-ahead   (1+β)·∇ℓ(x) + β·∇ℓ(x+u)

    Where views are random, the gradients of a difference see the same draws; the look-ahead's second one draws anew, as
    that class does.

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

    def __call__(self, gradient: Gradient, batch: Batch) -> Gradient:
        """The penalised gradient function."""
        beta, draws = self.beta, batch.draws
        if not beta:  # not even its draws
            return gradient

        def penalised(images: Tensor) -> Tensor:
            since = draws.mark()
            if self.form == "exact":
                return self._exact(gradient, images, batch)
            here = gradient(images)
            step = self._step(here)
            if self.form == "look-ahead":
                return (1 + beta) * here + beta * gradient(images + step)

            def there(moved: Tensor) -> Tensor:
                # A difference of gradients under other draws would be a difference of draws.
                with draws.repeated(since):
                    return gradient(moved)

            if self.form == "literal":
                return (1 + beta) * here - beta * there(images + step)
            if self.form == "backward":
                return (1 - beta) * here + beta * there(images - step)
            return here - beta / 2 * (there(images + step) - there(images - step))

        return penalised

    def _exact(self, gradient: Gradient, images: Tensor, batch: Batch) -> Tensor:
        before = batch.tally.gradients
        # Attention's fast kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), computing(batch.precision, images.device):
            differentiable = images.requires_grad
            inputs = images if differentiable else images.detach().requires_grad_()
            here = gradient(inputs)
            step = self._step(here.detach())
            # What is wrapped may be no gradient of anything (smoothed, say), and its Jacobian J not symmetric: Jᵀw is
            # linear in w, and its derivative along the step is Ju.
            along = torch.zeros_like(here, requires_grad=True)
            (transposed,) = torch.autograd.grad(here, inputs, along, create_graph=True)
            (product,) = torch.autograd.grad(transposed, along, step, create_graph=differentiable)
        batch.tally.gradients += 2 * (batch.tally.gradients - before)
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


@dataclass(frozen=True)
class Smoothing:
    """Convolves the gradient with a kernel: the gradient of the loss averaged over small translations.

        W ∗ ∇ℓ(x),  W separable, of sum 1, zero-padded

        gaussian    exp(−i²/2σ²), at `size` even places from −3σ to 3σ, as in the authors' code
        uniform     1
        linear      1 − |i|/(k+1), k = (size − 1)/2

    Attributes:
        kernel: Which.
        size: Its side in pixels, odd.

    References:
        Dong et al., "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks", CVPR
        2019, arXiv 1904.02884, eq. 7 and section 3.3 (TI-FGSM); Gaussian, 15. (TransferAttack's linear kernel divides
        by size² instead of k + 1, and is all but uniform.)
    """

    kernel: Kernel = "gaussian"
    size: int = 15

    def __post_init__(self) -> None:
        if not (1 <= self.size <= 101 and self.size % 2):
            raise ValueError(f"size = {self.size}: must be an odd number from 1 to 101")

    def line(self) -> Tensor:
        """The kernel's factor along either axis, (size,) float64 of sum 1."""
        half = (self.size - 1) // 2
        offsets = torch.arange(-half, half + 1, dtype=torch.float64)
        if self.kernel == "gaussian":
            weights = (-((3 * offsets / max(1, half)) ** 2) / 2).exp()
        elif self.kernel == "linear":
            weights = 1 - offsets.abs() / (half + 1)
        else:
            weights = torch.ones_like(offsets)
        return weights / weights.sum()

    def __call__(self, gradient: Gradient, batch: Batch) -> Gradient:
        """The smoothed gradient function."""
        del batch

        def smoothed(images: Tensor) -> Tensor:
            line = self.line().to(images)
            along = line.view(1, 1, 1, -1).expand(3, 1, 1, -1)
            half = self.size // 2
            across = F.conv2d(gradient(images), along, padding=(0, half), groups=3)
            return F.conv2d(across, along.mT, padding=(half, 0), groups=3)

        return smoothed


@dataclass(frozen=True)
class VarianceTuning:
    """Adds how the gradient differed around the last step's point.

        g ← ∇ℓ(x_t) + v_{t−1},    v_t = mean over N of ∇ℓ(x_t + u_i) − ∇ℓ(x_t),   u_i even in [−ρε, ρε]

    Wrapped by another transform, it is asked for several points a step: v is measured around the first of them, and
    added at all.

    Attributes:
        samples: N.
        radius: ρ, in units of ε.

    References:
        Wang and He, "Enhancing the Transferability of Adversarial Attacks through Variance Tuning", CVPR 2021, arXiv
        2103.15571, eq. 8 and algorithm 1 (VMI-, VNI-FGSM); N = 20, ρ = 1.5.
    """

    samples: int = 20
    radius: float = 1.5

    def __post_init__(self) -> None:
        _require_neighbours(self.samples, self.radius)

    def __call__(self, gradient: Gradient, batch: Batch) -> Gradient:
        """The tuned gradient function."""
        step, variance, upcoming = -1, torch.zeros(()), torch.zeros(())

        def tuned(images: Tensor) -> Tensor:
            nonlocal step, variance, upcoming
            here = gradient(images)
            if batch.draws.step != step:
                step, variance = batch.draws.step, upcoming.to(here)
                if not batch.last:
                    around = _mean_over_neighbours(gradient, images.detach(), batch, self.samples, self.radius)
                    upcoming = around - here.detach()
            return here + variance

        return tuned


@dataclass(frozen=True)
class PenalisedNeighbours:
    """PGN: the penalised gradient averaged over neighbours, in search of a flat maximum.

        g ← mean over N of (1−β)·∇ℓ(x_i) + β·∇ℓ(x_i − α·∇ℓ(x_i)/mean|∇ℓ(x_i)|),    x_i = x + u_i,  u_i even in [−ρε, ρε]

    It is the gradient norm penalty in its backward form with r = α, by the mean-abs norm, at N neighbours.

    Attributes:
        samples: N.
        radius: ρ, in units of ε.
        beta: β, which the paper calls δ.

    References:
        Ge et al., "Boosting Adversarial Transferability by Achieving Flat Local Maxima", NeurIPS 2023, arXiv
        2306.05225, algorithm 1; N = 20, ρ = 3, β = 0.5.
    """

    samples: int = 20
    radius: float = 3.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        _require_neighbours(self.samples, self.radius)
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta = {self.beta}: must lie in [0, 1]")

    def __call__(self, gradient: Gradient, batch: Batch) -> Gradient:
        """The averaged, penalised gradient function."""
        penalty = GradientNormPenalty(form="backward", norm="mean-abs", r=batch.step_size, beta=self.beta)
        penalised = penalty(gradient, batch)
        return lambda images: _mean_over_neighbours(penalised, images, batch, self.samples, self.radius)


@dataclass(frozen=True)
class ReversePerturbation:
    """RAP: the gradient at the worst point nearby, found by descending, so that the attack holds in a neighbourhood.

        n ← 0;   K times: n ← clip(n − η·sign ∇ℓ(x + n), ±ε_n);    g = ∇ℓ(x + n)

    Attributes:
        epsilon: ε_n, on [0, 1].
        steps: K.
        step_size: η, on [0, 1].
        late_start: The share of the attack's steps that pass before it sets in.

    References:
        Qin et al., "Boosting the Transferability of Adversarial Attacks with Reverse Adversarial Perturbation", NeurIPS
        2022, arXiv 2210.05968, algorithm 1 (RAP-LS); ε_n = 16/255, K = 8, η = 2/255, from step 100 of 400 on: in 10
        steps it is far from that. (TransferAttack's n starts at random, and its x + n is cut off at [0, 1].)
    """

    epsilon: float = 16 / 255
    steps: int = 8
    step_size: float = 2 / 255
    late_start: float = 0.25

    def __post_init__(self) -> None:
        for name in ("epsilon", "step_size"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must lie in (0, 1], for pixels in [0, 1]")
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps = {self.steps}: must be a whole number from 1 to 1000")
        if not 0 <= self.late_start <= 1:
            raise ValueError(f"late_start = {self.late_start}: must lie in [0, 1]")

    def __call__(self, gradient: Gradient, batch: Batch) -> Gradient:
        """The gradient function at the reverse perturbation."""

        def reversed_(images: Tensor) -> Tensor:
            reverse = torch.zeros_like(images)
            if batch.draws.step >= self.late_start * batch.steps:
                for _ in range(self.steps):
                    descent = gradient(images.detach() + reverse).sign()
                    reverse = (reverse - self.step_size * descent).clamp(-self.epsilon, self.epsilon)
            return gradient(images + reverse)

        return reversed_


# The mean move of a pixel: four times the shortest at which bfloat16 was seen to tell two points apart, 0.1 in L2.
_APART = 0.001


def survives_bfloat16(transform: Transform, step_size: float) -> bool:
    """Whether it stays what it is in 8 bits: where it takes a difference, the two points must lie apart.

    The paper's step, 0.01 in L2, moves a pixel by 2.6e-5, which bfloat16 cannot tell from none. Measured in
    docs/evidence.md, under "Precision".

    Args:
        transform: Which.
        step_size: Of the attack, which PGN takes its difference over.
    """
    if isinstance(transform, PenalisedNeighbours):
        return step_size >= _APART
    if not isinstance(transform, GradientNormPenalty) or transform.form in ("look-ahead", "exact"):
        return True
    return transform.norm == "mean-abs" and transform.r >= _APART


def _mean_over_neighbours(gradient: Gradient, images: Tensor, batch: Batch, samples: int, radius: float) -> Tensor:
    """The mean gradient over points drawn evenly from the cube of half-side radius·ε around each image."""
    reach, total = radius * batch.epsilon, torch.zeros_like(images)
    for _ in range(samples):
        moved = batch.draws.uniform(*images.shape[1:], low=-reach, high=reach)
        total = total + gradient(images + moved.to(images.dtype))
    return total / samples


def _require_neighbours(samples: int, radius: float) -> None:
    if not 1 <= samples <= 1000:
        raise ValueError(f"samples = {samples}: must be a whole number from 1 to 1000")
    if not 0 < radius <= 255:
        raise ValueError(f"radius = {radius}: must be positive, and at most 255, in units of epsilon")
