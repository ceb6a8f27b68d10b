"""State that the parts of an attack share for the images of one call: labels, random draws, budget, Admix images."""

from dataclasses import dataclass, field

from torch import Tensor

from pipeline.attack.draws import Draws
from pipeline.attack.precision import Precision


@dataclass(frozen=True)
class AdmixPool:
    """Images that Admix mixes into others: fixed, so that results do not depend on the batch.

    Attributes:
        pixels: (N, 3, H, W) uint8, or float in [0, 1].
        labels: (N,) int64, true classes.
    """

    pixels: Tensor
    labels: Tensor


@dataclass
class GradientCounter:
    """Number of gradients of one network that an attack has computed per image."""

    gradients: int = 0


@dataclass(frozen=True)
class Batch:
    """The images of one call, without their pixels, and the settings that the attack's parts share.

    Attributes:
        labels: (B,) int64, true classes.
        draws: Random numbers of these images; holds the current step.
        pool: Images that Admix mixes in.
        epsilon: Budget.
        step_size: α.
        steps: T.
        counter: Counts gradients.
        precision: Precision of the model's forward and backward passes.
    """

    labels: Tensor
    draws: Draws
    pool: AdmixPool
    epsilon: float
    step_size: float
    steps: int
    counter: GradientCounter = field(default_factory=GradientCounter)
    precision: Precision = "float32"

    @property
    def is_last_step(self) -> bool:
        """Whether the current step is the last, so that no state has to be kept."""
        return self.draws.step == self.steps - 1
