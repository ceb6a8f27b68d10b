"""What views and transforms may know of the images that are attacked together."""

from dataclasses import dataclass, field

from torch import Tensor

from pipeline.attack.draws import Draws
from pipeline.attack.precision import Precision


@dataclass(frozen=True)
class Pool:
    """Images that others may be mixed with, the same whatever batch an image is in.

    Attributes:
        pixels: (N, 3, H, W) uint8, or float in [0, 1].
        labels: (N,) int64, true classes.
    """

    pixels: Tensor
    labels: Tensor


@dataclass
class Tally:
    """What an attack has cost so far: gradients of one network, for each image."""

    gradients: int = 0


@dataclass(frozen=True)
class Batch:
    """The images of one call, but for their pixels.

    Attributes:
        labels: (B,) int64, true classes.
        draws: Their random numbers; it knows which step the loop is at.
        pool: What they may be mixed with.
        epsilon: The budget.
        step_size: α.
        steps: T.
        tally: Counts gradients.
        precision: In which the model computes.
    """

    labels: Tensor
    draws: Draws
    pool: Pool
    epsilon: float
    step_size: float
    steps: int
    tally: Tally = field(default_factory=Tally)
    precision: Precision = "float32"

    @property
    def last(self) -> bool:
        """Whether this is the last step, after which no state is read."""
        return self.draws.step == self.steps - 1
