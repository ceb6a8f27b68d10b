"""Views: what the source sees of an image, inside the gradient.

Each is a frozen dataclass that makes `copies` of the images; the gradient is averaged over them, and where there are
several views over every combination. What is random is drawn for each image by itself, and anew at each evaluation.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from pipeline.attack.batch import Batch


class View(Protocol):
    """What every class below is, and whatever else wants to be one: a frozen dataclass."""

    @property
    def copies(self) -> int:
        """How many there are of each image."""

    def __call__(self, images: Tensor, number: int, batch: Batch) -> Tensor:
        """One of the copies of images (B, 3, H, W)."""


@dataclass(frozen=True)
class DiverseInput:
    """With some probability, the image at a random size s and a random place on a black canvas.

        rate > 1:   s even in [N, rate·N), on a canvas of rate·N
        rate < 1:   s even in [rate·N, N), on a canvas of N

    All resizing is bilinear, as a product with a matrix on either side: linear and separable, so that each image has a
    size of its own, and the backward pass adds in a fixed order on every device.

    Attributes:
        rate: As above; N is the image's side.
        probability: How often.
        variant: `resize-back`: a canvas of rate·N is brought back to N, as later code does. `no-resize-back`: the
            network itself sees the larger canvas, as published; an image that is not chosen fills it, as those of one
            batch are of one size. Networks of a fixed size are refused.

    References:
        Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity", CVPR 2019, arXiv
        1803.06978, section 3.3: from 299 to [299, 330), probability 0.5, no resizing back. Their code resizes by
        nearest neighbours, and its canvas is zero on [−1, 1], which is grey; black is what later code has.
    """

    rate: float = 1.1
    probability: float = 0.5
    variant: Literal["resize-back", "no-resize-back"] = "resize-back"

    def __post_init__(self) -> None:
        if not (0.1 <= self.rate <= 4 and self.rate != 1):
            raise ValueError(f"rate = {self.rate}: must lie between 0.1 and 4, and not be 1")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability = {self.probability}: must lie in [0, 1]")

    @property
    def copies(self) -> int:
        """How many there are of each image."""
        return 1

    @property
    def enlargement(self) -> float:
        """How much larger what comes out is than what goes in."""
        return max(1.0, self.rate) if self.variant == "no-resize-back" else 1.0

    def __call__(self, images: Tensor, number: int, batch: Batch) -> Tensor:
        """Images (B, 3, N, N) as (B, 3, S, S): S = rate·N where that is larger and is not brought back, else N."""
        del number
        side, draws = images.shape[-1], batch.draws
        least, canvas = sorted((side, int(side * self.rate)))
        chosen = draws.uniform() < self.probability
        sides = least + draws.below(max(1, canvas - least))
        top, left = ((draws.uniform().double() * (canvas - sides + 1)).long() for _ in range(2))
        whole = torch.full_like(sides, canvas)
        sides, top, left = torch.where(chosen, sides, whole), top * chosen, left * chosen
        down, across = (resizing(side, sides, canvas=canvas, at=at) for at in (top, left))
        if self.variant == "resize-back" and canvas > side:
            back = resizing(canvas, torch.full_like(sides, side), canvas=side, at=torch.zeros_like(sides))
            down, across = back @ down, back @ across
            same = torch.eye(side, dtype=down.dtype, device=down.device)
            down, across = (torch.where(chosen.view(-1, 1, 1), matrix, same) for matrix in (down, across))
        return down.unsqueeze(1).to(images.dtype) @ images @ across.mT.unsqueeze(1).to(images.dtype)


@dataclass(frozen=True)
class Scale:
    """Copies of the image at falling brightness, x/2^i for i = 0 … m−1.

    Attributes:
        copies: m.

    References:
        Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", ICLR 2020, arXiv
        1908.06281, eq. 9 (SI-NI-FGSM); m = 5.
    """

    copies: int = 5

    def __post_init__(self) -> None:
        _require_count("copies", self.copies, most=64)

    def __call__(self, images: Tensor, number: int, batch: Batch) -> Tensor:
        """One copy, (B, 3, H, W)."""
        del batch
        return images * 0.5**number


@dataclass(frozen=True)
class Admix:
    """The image with a little of another class's in it, at falling brightness: (x + η·x′)/2^i for i = 0 … m₁−1.

    x′ is drawn from the pool, for each image by itself; where no image of another class is there, from all. The pool
    holds clean images, so that an image does not depend on its batch; later code mixes the batch's images as they are
    by then, whatever their class.

    Attributes:
        samples: m₂, how many x′.
        scales: m₁.
        share: η.

    References:
        Wang et al., "Admix: Enhancing the Transferability of Adversarial Attacks", ICCV 2021, arXiv 2102.00436, eq. 5;
        m₁ = 5, m₂ = 3, η = 0.2.
    """

    samples: int = 3
    scales: int = 5
    share: float = 0.2

    def __post_init__(self) -> None:
        _require_count("samples", self.samples, most=64)
        _require_count("scales", self.scales, most=64)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share}: must lie in [0, 1]")

    @property
    def copies(self) -> int:
        """How many there are of each image."""
        return self.samples * self.scales

    def __call__(self, images: Tensor, number: int, batch: Batch) -> Tensor:
        """One copy, (B, 3, H, W)."""
        labels, pool = batch.labels.to(batch.pool.labels.device), batch.pool
        other = labels.view(-1, 1) != pool.labels.view(1, -1)
        other |= ~other.any(dim=1, keepdim=True)
        # The k-th of those that are of another class, k even below their number.
        partner = batch.draws.shared(f"admix {number // self.scales}")  # each at every scale
        kth = (partner.to(labels.device).double() * other.sum(dim=1)).long()
        partners = (other.cumsum(dim=1) > kth.view(-1, 1)).int().argmax(dim=1)
        mixed = pool.pixels[partners].to(images.device, images.dtype)
        mixed = mixed / 255 if pool.pixels.dtype == torch.uint8 else mixed
        return (images + self.share * mixed) * 0.5 ** (number % self.scales)


def resizing(side: int, sides: Tensor, *, canvas: int, at: Tensor) -> Tensor:
    """Bilinear resizing of lines of `side` pixels, each to a length and a place of its own, as matrices.

    Args:
        side: Length before.
        sides: (B,) int64, lengths after.
        canvas: Length of the line that they are put on; all else of it is 0.
        at: (B,) int64, where they begin.

    Returns:
        (B, canvas, side) float32, as `torch.nn.functional.interpolate` has it without antialiasing.
    """
    device = sides.device
    places = torch.arange(canvas, device=device).view(1, -1) - at.view(-1, 1)
    seen = ((places + 0.5) * side / sides.view(-1, 1) - 0.5).clamp(0, side - 1)
    weights = (1 - (seen.unsqueeze(2) - torch.arange(side, device=device)).abs()).clamp_min(0)
    inside = (places >= 0) & (places < sides.view(-1, 1))
    return weights * inside.unsqueeze(2)


def _require_count(name: str, value: int, *, most: int) -> None:
    if not 1 <= value <= most:
        raise ValueError(f"{name} = {value}: must be a whole number from 1 to {most}")
