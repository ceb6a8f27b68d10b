"""Randomness per image: a number depends on (seed, key, step, which draw of that step) alone.

Neither the batch that an image is in, nor the worker, nor a retry, nor the device changes what is drawn: the bits come
from a counter and integer arithmetic, which every device does alike, and so whole batches are drawn where they lie.
(Normal numbers are made of these bits in floating point, whose last bit may differ between devices.)

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


class Draws:
    """The random numbers of one batch: of each image its own, whoever is beside it.

    Args:
        seed: Seed of every draw.
        keys: The images' keys, B of them.
        device: Where the numbers are wanted.
        purpose: What they are for: an attack's and a defense's numbers have nothing in common.
    """

    def __init__(
        self, seed: int, keys: Sequence[str], device: torch.device | str = "cpu", *, purpose: str = "attack"
    ) -> None:
        self._seed = seed
        self._keys = keys
        self._device = device
        self._purpose = purpose
        self.step = 0
        self._drawn = 0
        self._evaluation = 0

    def begin(self, step: int) -> None:
        """Starts the draws of a step; they do not depend on how many the steps before it took."""
        self.step, self._drawn, self._evaluation = step, 0, 0

    def evaluate(self) -> None:
        """Starts an evaluation of the gradient, whose copies of an image may share numbers (`shared`)."""
        self._evaluation = self._drawn
        self._drawn += 1

    @contextlib.contextmanager
    def repeated(self, since: int) -> Iterator[None]:
        """While entered, draws again what was drawn since a `mark`; afterwards nothing that was drawn before."""
        reached, self._drawn = self._drawn, since
        try:
            yield
        finally:
            self._drawn = max(reached, self._drawn)

    def mark(self) -> int:
        """A place to go back to."""
        return self._drawn

    def shared(self, name: str) -> Tensor:
        """(B,) float32, evenly from [0, 1), the same whenever asked for by that name within an evaluation."""
        return self._numbers(f"{self._evaluation}:{name}", ())

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) float32, evenly from [low, high)."""
        return low + (high - low) * self._fractions(shape)

    def below(self, limit: int, *shape: int) -> Tensor:
        """(B, *shape) int64, evenly from 0 … limit − 1."""
        return (self._fractions(shape).double() * limit).long()

    def signs(self, *shape: int) -> Tensor:
        """(B, *shape) float32, −1 or 1 with equal chance."""
        return (self._fractions(shape) < 0.5).float() * 2 - 1

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal, cut off at 5.4 standard deviations."""
        # The middle of each of 2^24 equal slices of (0, 1), through the inverse of the distribution function.
        found: Tensor = torch.special.ndtri(self._fractions(shape).double() + 0.5 ** (_BITS + 1)).float()
        return found

    def _fractions(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) float32, multiples of 2^−24 in [0, 1)."""
        self._drawn += 1
        return self._numbers(str(self._drawn - 1), shape)

    def _numbers(self, name: str, shape: Sequence[int]) -> Tensor:
        starts = torch.tensor([self._start(key, name) for key in self._keys], device=self._device)
        count = torch.Size(shape).numel()
        # Each 64 bits give two numbers.
        places = torch.arange(1, -(-count // 2) + 1, device=self._device)
        bits = _mixed(starts.view(-1, 1) + _GOLDEN * places)
        drawn = torch.cat([_shifted(bits, 64 - _BITS), bits & ((1 << _BITS) - 1)], dim=1)[:, :count]
        return (drawn.float() * 0.5**_BITS).view(len(starts), *shape)

    def _start(self, key: str, name: str) -> int:
        digest = hashlib.sha256(f"{self._purpose}/{self._seed}/{self.step}/{name}/{key}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)


def _mixed(bits: Tensor) -> Tensor:
    """SplitMix64's finalizer: int64 → int64, a bijection whose every output bit hangs on every input bit."""
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shifted right as unsigned numbers are: torch's own shift copies the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
