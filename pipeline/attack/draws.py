"""Random numbers per image: each depends only on (seed, key, step, index of the draw within the step).

What is drawn does not depend on the batch, the worker, a retry or the device: each key is hashed once, and the bits are
made from that by integer arithmetic, which all devices do alike, so that whole batches are drawn on the device that
needs them. (Normal numbers are made from these bits in floating point, whose last bit may differ between devices.)

References:
    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (SplitMix64).
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# SplitMix64's constants, as the signed integers that torch has.
_GOLDEN, _FIRST, _SECOND = (n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
# As many bits as float32 holds exactly.
_BITS = 24
# The first step's index: a random start and random target classes are drawn before step 0.
_FIRST_STEP = -2

# Raised when the same seed and key give other numbers than before.
VERSION = 2


class Draws:
    """The random numbers of one batch, independent for each image.

    Args:
        seed: Seed of all draws.
        keys: The images' keys, B of them.
        device: Device of the tensors that are drawn.
        purpose: Name of the random stream: the numbers of an attack and of a defense are independent.
    """

    def __init__(
        self, seed: int, keys: Sequence[str], device: torch.device | str = "cpu", *, purpose: str = "attack"
    ) -> None:
        digests = [_digest(f"{purpose}/{seed}/{key}") for key in keys]
        self._images = torch.tensor(digests, dtype=torch.int64, device=device)  # a generator's start for each image
        self.begin_step(0)

    def begin_step(self, step: int) -> None:
        """Starts the draws of a step, from −2 on, which do not depend on the number of draws before it."""
        self.step = step
        self._steps = _nth(self._images, step - _FIRST_STEP)  # each step has a generator of its own
        self._drawn = 0
        self._evaluation = 0

    def begin_evaluation(self) -> None:
        """Starts an evaluation of the gradient, in which copies of an image may share numbers (`shared`)."""
        self._evaluation = self._drawn
        self._drawn += 1

    def position(self) -> int:
        """Number of draws in this step so far; `replay` goes back to it."""
        return self._drawn

    @contextlib.contextmanager
    def replay(self, position: int) -> Iterator[None]:
        """Context in which the draws since a position are repeated; after it, draws are new again."""
        reached, self._drawn = self._drawn, position
        try:
            yield
        finally:
            self._drawn = max(reached, self._drawn)

    def shared(self, name: str) -> Tensor:
        """(B,) float32, uniform in [0, 1); the same for every call with this name within an evaluation."""
        return _numbers(_mixed(self._steps ^ _digest(f"{self._evaluation}:{name}")), ())

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) float32, uniform in [low, high)."""
        return low + (high - low) * self._fractions(shape)

    def below(self, limit: int | Tensor, *shape: int) -> Tensor:
        """(B, *shape) int64, uniform in 0 … limit − 1; the limit may be a tensor of the same shape."""
        return (self._fractions(shape).double() * limit).long()

    def squares(self, least: int, canvas: int) -> tuple[Tensor, Tensor, Tensor]:
        """Squares of random size and place on a canvas: side in [least, canvas), top and left, each (B,) int64."""
        sides = least + self.below(max(1, canvas - least))
        top = self.below(canvas - sides + 1)
        left = self.below(canvas - sides + 1)
        return sides, top, left

    def signs(self, *shape: int) -> Tensor:
        """(B, *shape) float32, −1 or 1 with equal probability."""
        return (self._fractions(shape) < 0.5).float() * 2 - 1

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal, cut off at 5.4 standard deviations."""
        # The middle of each of 2^24 equal slices of (0, 1), through the inverse of the distribution function.
        numbers: Tensor = torch.special.ndtri(self._fractions(shape).double() + 0.5 ** (_BITS + 1)).float()
        return numbers

    def _fractions(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) float32, multiples of 2^−24 in [0, 1)."""
        self._drawn += 1
        return _numbers(_nth(self._steps, self._drawn - 1), shape)


def _digest(text: str) -> int:
    """64 bits of a text's sha256, as a signed integer."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _numbers(starts: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, *shape) float32, the first numbers of the generators that start there, (B,) int64."""
    count = torch.Size(shape).numel()
    # Each 64 bits give two numbers.
    counters = torch.arange(1, -(-count // 2) + 1, device=starts.device)
    bits = _mixed(starts.view(-1, 1) + _GOLDEN * counters)
    numbers = torch.cat([_shifted_right(bits, 64 - _BITS), bits & ((1 << _BITS) - 1)], dim=1)[:, :count]
    return (numbers.float() * 0.5**_BITS).view(len(starts), *shape)


def _nth(starts: Tensor, index: int) -> Tensor:
    """Number `index`, from 0, of the generators that start there, (B,) int64."""
    offset = (_GOLDEN * (index + 1) + (1 << 63)) % (1 << 64) - (1 << 63)  # modulo 2^64, as a signed integer
    return _mixed(starts + offset)


def _mixed(bits: Tensor) -> Tensor:
    """SplitMix64's finalizer: int64 → int64, a bijection in which every output bit depends on every input bit."""
    bits = (bits ^ _shifted_right(bits, 30)) * _FIRST
    bits = (bits ^ _shifted_right(bits, 27)) * _SECOND
    return bits ^ _shifted_right(bits, 31)


def _shifted_right(bits: Tensor, places: int) -> Tensor:
    """Logical right shift: torch's own shift copies the sign bit."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
