"""Input transforms: what an attack does to an image before the source sees it, inside the gradient.

Each is a frozen dataclass that makes `copies` of the images. The gradient is averaged over the copies; with several
input transforms, over all combinations of theirs. Random numbers are drawn per image, anew at each evaluation.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from pipeline.attack.batch import Batch
from pipeline.attack.limits import require_count, require_share


class InputTransform(Protocol):
    """Interface of an input transform; implementations are frozen dataclasses."""

    @property
    def copies(self) -> int:
        """Number of copies of each image."""

    def __call__(self, images: Tensor, number: int, batch: Batch) -> Tensor:
        """Copy `number` of images (B, 3, H, W)."""


@dataclass(frozen=True)
class DiverseInput:
    """With some probability, the image at a random size s and a random place on a black canvas.

        rate > 1:   s uniform in [N, rate·N), on a canvas of rate·N
        rate < 1:   s uniform in [rate·N, N), on a canvas of N

    All resizing is bilinear, as a product with a matrix on either side: linear and separable, so that each image has
    its own size, and the backward pass adds in a fixed order on every device.

    Attributes:
        rate: Largest size, or if below 1 smallest size, as a multiple of the image's side N.
        probability: Probability that an image is transformed.
        variant: `resize-back`: a canvas of rate·N is resized to N, as later code does. `no-resize-back`: the network
            itself gets the larger canvas, as published; images that are not chosen fill it, since all images of a batch
            have one size. Networks of a fixed size are refused.

    References:
        Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity", CVPR 2019, arXiv
        1803.06978, section 3.3: from 299 to [299, 330), probability 0.5, no resizing back. Their code resizes by
        nearest neighbours, and its canvas is zero on [−1, 1], which is grey; later code uses black.
    """

    rate: float = 1.1
    probability: float = 0.5
    variant: Literal["resize-back", "no-resize-back"] = "resize-back"

    def __post_init__(self) -> None:
        if not (0.1 <= self.rate <= 4 and self.rate != 1):
            raise ValueError(f"rate = {self.rate}: must lie between 0.1 and 4, and not be 1")
        require_share("probability", self.probability)

    @property
    def copies(self) -> int:
        """Number of copies of each image."""
        return 1

    @property
    def enlargement(self) -> float:
        """Side of the output, as a multiple of the side of the input."""
        return max(1.0, self.rate) if self.variant == "no-resize-back" else 1.0

    def __call__(self, images: Tensor, number: int, batch: Batch) -> Tensor:
        """Images (B, 3, N, N) as (B, 3, S, S): S = rate·N if that is larger and not resized back, otherwise N.

        Raises:
            ValueError: The images are not square.
        """
        del number
        if images.shape[2] != images.shape[3]:
            raise ValueError(
                f"di: images of {images.shape[2]} x {images.shape[3]}: takes square ones; crop or pad them"
            )
        side = images.shape[-1]
        smallest, canvas = sorted((side, int(side * self.rate)))
        chosen = batch.draws.uniform() < self.probability
        sides, top, left = batch.draws.squares(smallest, canvas)
        sides = torch.where(chosen, sides, torch.full_like(sides, canvas))
        rows = resizing_matrices(side, sides, canvas=canvas, start=top * chosen)
        columns = resizing_matrices(side, sides, canvas=canvas, start=left * chosen)
        if self.variant == "resize-back" and canvas > side:
            back = resizing_matrices(canvas, torch.full_like(sides, side), canvas=side, start=torch.zeros_like(sides))
            identity = torch.eye(side, dtype=rows.dtype, device=rows.device)
            rows, columns = (
                torch.where(chosen.view(-1, 1, 1), back @ matrices, identity) for matrices in (rows, columns)
            )
        return rows.unsqueeze(1).to(images.dtype) @ images @ columns.mT.unsqueeze(1).to(images.dtype)


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
        require_count("copies", self.copies, most=64)

    def __call__(self, images: Tensor, number: int, batch: Batch) -> Tensor:
        """One copy, (B, 3, H, W)."""
        del batch
        return images * 0.5**number


@dataclass(frozen=True)
class Admix:
    """The image mixed with a share of an image of another class, at falling brightness: (x + η·x′)/2^i for i < m₁.

    x′ is drawn from the pool, separately for each image; if the pool holds no image of another class, from all its
    images. The pool holds clean images, so that a result does not depend on the batch; later code mixes in the batch's
    images as the attack has changed them by then, whatever their class.

    Attributes:
        samples: m₂, the number of x′.
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
        require_count("samples", self.samples, most=64)
        require_count("scales", self.scales, most=64)
        require_share("share", self.share)

    @property
    def copies(self) -> int:
        """Number of copies of each image."""
        return self.samples * self.scales

    def __call__(self, images: Tensor, number: int, batch: Batch) -> Tensor:
        """One copy, (B, 3, H, W)."""
        sample, scale = divmod(number, self.scales)
        pool = batch.pool
        partners = self._partners(batch, sample)
        mixed_in = pool.pixels[partners].to(images.device, images.dtype)
        mixed_in = mixed_in / 255 if pool.pixels.dtype == torch.uint8 else mixed_in
        return (images + self.share * mixed_in) * 0.5**scale

    def _partners(self, batch: Batch, sample: int) -> Tensor:
        """Index in the pool of the image that each image is mixed with, (B,) int64; the same at every scale."""
        labels = batch.labels.to(batch.pool.labels.device)
        is_candidate = labels.view(-1, 1) != batch.pool.labels.view(1, -1)
        is_candidate |= ~is_candidate.any(dim=1, keepdim=True)
        # The k-th candidate, k uniform below their number.
        fraction = batch.draws.shared(f"admix {sample}").to(labels.device)
        k = (fraction.double() * is_candidate.sum(dim=1)).long()
        return (is_candidate.cumsum(dim=1) > k.view(-1, 1)).int().argmax(dim=1)


def resizing_matrices(side: int, sides: Tensor, *, canvas: int, start: Tensor) -> Tensor:
    """Matrices that resize a line of `side` pixels bilinearly and place it on a canvas, one per image.

    Args:
        side: Length before.
        sides: (B,) int64, lengths after.
        canvas: Length of the canvas, which is 0 around the resized line.
        start: (B,) int64, index on the canvas of the resized line's first pixel.

    Returns:
        (B, canvas, side) float32, as `torch.nn.functional.interpolate` resizes without antialiasing.
    """
    device = sides.device
    places = torch.arange(canvas, device=device).view(1, -1) - start.view(-1, 1)
    sampled = ((places + 0.5) * side / sides.view(-1, 1) - 0.5).clamp(0, side - 1)
    weights = (1 - (sampled.unsqueeze(2) - torch.arange(side, device=device)).abs()).clamp_min(0)
    inside = (places >= 0) & (places < sides.view(-1, 1))
    return weights * inside.unsqueeze(2)
