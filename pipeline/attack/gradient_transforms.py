"""Gradient transforms: each wraps the gradient function, `GradientFunction -> GradientFunction`.

Each is a frozen dataclass that is its own configuration, provenance and behaviour. It wraps the function, not its
value, because it may have to evaluate it at other points. Its state is created anew for each batch.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attack.ball import random_perturbation
from pipeline.attack.batch import Batch
from pipeline.attack.gradient import GradientFunction
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.limits import require_count, require_distance, require_positive, require_share

Kernel = Literal["gaussian", "uniform", "linear"]


class GradientTransform(Protocol):
    """Interface of a gradient transform; implementations are frozen dataclasses."""

    def __call__(self, gradient: GradientFunction, batch: Batch) -> GradientFunction:
        """The transformed gradient function, for the images of one call."""


@dataclass(frozen=True)
class Smoothing:
    """Convolves the gradient with a kernel: the gradient of the loss averaged over small translations.

        W ∗ ∇ℓ(x),  W separable, of sum 1, zero-padded

        gaussian    exp(−i²/2σ²), at `size` evenly spaced points from −3σ to 3σ, as in the authors' code
        uniform     1
        linear      1 − |i|/(k+1), k = (size − 1)/2

    Attributes:
        kernel: Shape of the kernel.
        size: Side of the kernel in pixels, odd.

    References:
        Dong et al., "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks", CVPR
        2019, arXiv 1904.02884, eq. 7 and section 3.3 (TI-FGSM); Gaussian, 15. (TransferAttack's linear kernel divides
        by size² instead of k + 1, and is almost uniform.)
    """

    kernel: Kernel = "gaussian"
    size: int = 15

    def __post_init__(self) -> None:
        if not (1 <= self.size <= 101 and self.size % 2):
            raise ValueError(f"size = {self.size}: must be an odd number from 1 to 101")

    def line(self) -> Tensor:
        """The kernel along one axis, (size,) float64 of sum 1; the kernel is its outer product with itself."""
        half = (self.size - 1) // 2
        offsets = torch.arange(-half, half + 1, dtype=torch.float64)
        if self.kernel == "gaussian":
            weights = (-((3 * offsets / max(1, half)) ** 2) / 2).exp()
        elif self.kernel == "linear":
            weights = 1 - offsets.abs() / (half + 1)
        else:
            weights = torch.ones_like(offsets)
        return weights / weights.sum()

    def __call__(self, gradient: GradientFunction, batch: Batch) -> GradientFunction:
        """The smoothed gradient function."""
        whole_line = self.line().to(batch.labels.device)  # once: a copy to a GPU at each step would have it wait

        def smoothed(images: Tensor) -> Tensor:
            line = whole_line.to(images.dtype)
            channels = images.shape[1]
            row_kernel = line.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
            half = self.size // 2
            smoothed_rows = F.conv2d(gradient(images), row_kernel, padding=(0, half), groups=channels)
            return F.conv2d(smoothed_rows, row_kernel.mT, padding=(half, 0), groups=channels)

        return smoothed


@dataclass(frozen=True)
class VarianceTuning:
    """Adds the variance of the gradient around the previous step's point.

        g ← ∇ℓ(x_t) + v_{t−1},    v_t = mean over N of ∇ℓ(x_t + u_i) − ∇ℓ(x_t),   u_i uniform in [−ρε, ρε]

    If another transform wraps it and evaluates several points per step, v is measured around the first point, and added
    at all of them.

    Attributes:
        samples: N, the number of neighbours.
        radius: ρ, in units of ε.

    References:
        Wang and He, "Enhancing the Transferability of Adversarial Attacks through Variance Tuning", CVPR 2021, arXiv
        2103.15571, eq. 8 and algorithm 1 (VMI-, VNI-FGSM); N = 20, ρ = 1.5.
    """

    samples: int = 20
    radius: float = 1.5

    def __post_init__(self) -> None:
        _require_neighbours(self.samples, self.radius)

    def __call__(self, gradient: GradientFunction, batch: Batch) -> GradientFunction:
        """The tuned gradient function."""
        step = -1
        variance, next_variance = torch.zeros(()), torch.zeros(())

        def tuned(images: Tensor) -> Tensor:
            nonlocal step, variance, next_variance
            g = gradient(images)
            if batch.draws.step != step:
                step, variance = batch.draws.step, next_variance.to(g)
                if not batch.is_last_step:
                    mean = _mean_over_neighbours(gradient, images.detach(), batch, self.samples, self.radius)
                    next_variance = mean - g.detach()
            return g + variance

        return tuned


@dataclass(frozen=True)
class PenalisedNeighbours:
    """PGN: the penalised gradient averaged over neighbours, in search of a flat maximum.

        g ← mean over N of (1−β)·∇ℓ(x_i) + β·∇ℓ(x_i − α·∇ℓ(x_i)/mean|∇ℓ(x_i)|)
        x_i = x + u_i,   u_i uniform in [−ρε, ρε]

    It is the gradient norm penalty in its backward form, with r = α and the mean-abs norm, at N neighbours.

    Attributes:
        samples: N, the number of neighbours.
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
        require_share("beta", self.beta)

    def __call__(self, gradient: GradientFunction, batch: Batch) -> GradientFunction:
        """The averaged, penalised gradient function."""
        penalty = GradientNormPenalty(form="backward", norm="mean-abs", r=batch.step_size, beta=self.beta)
        penalised = penalty(gradient, batch)
        return lambda images: _mean_over_neighbours(penalised, images, batch, self.samples, self.radius)


@dataclass(frozen=True)
class ReversePerturbation:
    """RAP: the gradient at the worst point nearby, found by descent, so that the attack holds in a neighbourhood.

        n ← 0;   K times: n ← clip(n − η·sign ∇ℓ(x + n), ±ε_n);    g = ∇ℓ(x + n)

    Attributes:
        epsilon: ε_n, on [0, 1].
        steps: K.
        step_size: η, on [0, 1].
        late_start: Share of the attack's steps that run without it, at the beginning.

    References:
        Qin et al., "Boosting the Transferability of Adversarial Attacks with Reverse Adversarial Perturbation", NeurIPS
        2022, arXiv 2210.05968, algorithm 1 (RAP-LS); ε_n = 16/255, K = 8, η = 2/255, from step 100 of 400 on: an
        attack of 10 steps is far from that. (TransferAttack's n starts at random, and its x + n is clipped to [0, 1].)
    """

    epsilon: float = 16 / 255
    steps: int = 8
    step_size: float = 2 / 255
    late_start: float = 0.25

    def __post_init__(self) -> None:
        require_distance("epsilon", self.epsilon)
        require_distance("step_size", self.step_size)
        require_count("steps", self.steps, most=1000)
        require_share("late_start", self.late_start)

    def __call__(self, gradient: GradientFunction, batch: Batch) -> GradientFunction:
        """The gradient function at the reverse perturbation."""

        def at_worst_point(images: Tensor) -> Tensor:
            reverse = torch.zeros_like(images)
            if batch.draws.step >= self.late_start * batch.steps:
                for _ in range(self.steps):
                    descent = gradient(images.detach() + reverse).sign()
                    reverse = (reverse - self.step_size * descent).clamp(-self.epsilon, self.epsilon)
            return gradient(images + reverse)

        return at_worst_point


# Mean move of a pixel: four times the shortest at which bfloat16 was seen to distinguish two points, 0.1 in L2.
_SHORTEST_IN_BFLOAT16 = 0.001


def survives_bfloat16(transform: GradientTransform, step_size: float) -> bool:
    """Whether a transform works in bfloat16's 8 significant bits: the points of a difference must lie far enough apart.

    The paper's step, 0.01 in L2, moves a pixel by 2.6e-5, which bfloat16 rounds to nothing. Measured in
    docs/evidence.md, under "Precision".

    Args:
        transform: The transform.
        step_size: Step size of the attack, over which PGN takes its difference.
    """
    if isinstance(transform, PenalisedNeighbours):
        return step_size >= _SHORTEST_IN_BFLOAT16
    if not isinstance(transform, GradientNormPenalty) or transform.form in ("look-ahead", "exact"):
        return True
    return transform.norm == "mean-abs" and transform.r >= _SHORTEST_IN_BFLOAT16


def _mean_over_neighbours(
    gradient: GradientFunction, images: Tensor, batch: Batch, samples: int, radius: float
) -> Tensor:
    """The mean gradient over points drawn uniformly from the cube of half-side radius·ε around each image."""
    total = torch.zeros_like(images)
    for _ in range(samples):
        total = total + gradient(images + random_perturbation(batch.draws, images, radius * batch.epsilon, "linf"))
    return total / samples


def _require_neighbours(samples: int, radius: float) -> None:
    require_count("samples", samples, most=1000)
    require_positive("radius", radius, most=255, condition=", in units of epsilon")
