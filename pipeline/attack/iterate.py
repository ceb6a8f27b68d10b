"""The loops: momentum, step and projection onto the ball, as the papers' algorithms read."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from pipeline.attack import draws
from pipeline.attack.gradient import loss_gradient
from pipeline.attack.transforms import Transform


@dataclass(frozen=True)
class Iterative:
    """Iterated sign steps along an accumulated gradient, inside an L∞ ball.

        v ← μ·v + g/mean|g|,   g = transforms(∇ℓ)(x)          per image
        x ← clip(x + α·sign(v))                               to the ball and to [0, 1]

    With decay 0 this is I-FGSM, with decay 1 MI-FGSM. The published normalisation is by ‖g‖₁; the mean of |g| differs
    by a constant factor, which sign does not see, and does not overflow.

    Attributes:
        name: What results call the attack.
        epsilon: The L∞ budget on [0, 1].
        steps: T.
        step_size: α.
        decay: μ.
        transforms: Applied to the gradient function, innermost first.
        seed: Seed of every draw.

    References:
        Kurakin et al., "Adversarial examples in the physical world", arXiv 1607.02533 (I-FGSM).
        Dong et al., "Boosting Adversarial Attacks with Momentum", arXiv 1710.06081, algorithm 1 (MI-FGSM).
    """

    name: str
    epsilon: Fraction
    steps: int
    step_size: Fraction
    decay: float = 0.0
    transforms: tuple[Transform, ...] = ()
    seed: int = 0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, keys: Sequence[str]) -> Tensor:
        """Adversarial images.

        Args:
            model: The source; maps images in [0, 1] to logits (B, classes).
            images: (B, 3, H, W) float32 in [0, 1].
            labels: (B,) int64, the true classes.
            keys: The images' keys.

        Returns:
            (B, 3, H, W) float32 in [0, 1], within epsilon of `images` up to float rounding.

        Raises:
            FloatingPointError: The gradient was not finite on some image, in some step.
        """
        gradient = loss_gradient(model, labels)
        for transform in self.transforms:
            gradient = transform(gradient)
        epsilon, step_size = float(self.epsilon), float(self.step_size)
        lower, upper = (images - epsilon).clamp_min(0), (images + epsilon).clamp_max(1)
        adversarial, velocity = images, torch.zeros_like(images)
        for _ in range(self.steps):
            velocity = self.decay * velocity + _mean_abs_normalised(gradient(adversarial))
            adversarial = (adversarial + step_size * velocity.sign()).clamp(lower, upper)
        # sign(NaN) is 0, so that a broken gradient would pass for a weak attack; a velocity once NaN stays so.
        finite = velocity.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            raise FloatingPointError(f"{self.name}: the gradient is not finite on image {keys[finite.index(False)]!r}")
        return adversarial


@dataclass(frozen=True)
class Noise:
    """Random signs at full budget, x + ε·s with s fair in {−1, 1}: what the ball does without an attack.

    Attributes:
        name: What results call it.
        epsilon: The L∞ budget on [0, 1].
        seed: Seed of the draws.
    """

    name: str
    epsilon: Fraction
    seed: int = 0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, keys: Sequence[str]) -> Tensor:
        """Noisy images, (B, 3, H, W) float32 in [0, 1]; model and labels are not looked at."""
        noise = draws.signs(self.seed, keys, 0, images.shape[1:]).to(images.device)
        return (images + float(self.epsilon) * noise).clamp(0, 1)


def _mean_abs_normalised(gradient: Tensor) -> Tensor:
    """g/mean|g| per image; zero where the gradient is."""
    tiny = torch.finfo(gradient.dtype).tiny
    return gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
