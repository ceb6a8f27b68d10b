"""Random noise, the baseline of an attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from torch import Tensor, nn

from pipeline.attack import ball
from pipeline.attack.ball import BallNorm
from pipeline.attack.batch import AdmixPool, GradientCounter
from pipeline.attack.draws import Draws


@dataclass(frozen=True)
class Noise:
    """Random noise at full budget: the effect of the budget without an attack.

        L∞    x + ε·s,  s uniform in {−1, 1}
        L2    x + ε·n/‖n‖₂,  n normal

    Attributes:
        name: Name in results.
        epsilon: Budget on [0, 1].
        norm: Norm of the budget.
        seed: Seed of the draws.
    """

    name: str
    epsilon: Fraction
    norm: BallNorm = "linf"
    seed: int = 0
    target_class: ClassVar[None] = None
    enlargement: ClassVar[float] = 1.0

    def target_classes(
        self, model: nn.Module, images: Tensor, labels: Tensor, keys: Sequence[str], given: Tensor | None = None
    ) -> None:
        """None: noise has no target class."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        keys: Sequence[str],
        *,
        target_classes: Tensor | None = None,
        pool: AdmixPool | None = None,
        counter: GradientCounter | None = None,
    ) -> Tensor:
        """Noisy images, (B, 3, H, W) float32 in [0, 1]; depends on images and keys only."""
        draws = Draws(self.seed, keys, images.device)
        noise = ball.random_direction(draws, images.shape[1:], self.norm)
        return (images + float(self.epsilon) * noise.to(images.dtype)).clamp(0, 1)
