"""Defenses of a target: transforms of an image before or at the network's input, and the prediction of the defended.

A defense is a frozen dataclass that maps images to images; a target may have several, applied in the order in which its
recipe names them. Random numbers are drawn per image from (seed, key), so that scoring again gives the same rows.
Where a defense needs several forward passes, their probabilities are averaged; randomised smoothing counts votes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.attack.draws import VERSION as RANDOM_NUMBERS
from pipeline.attack.draws import Draws
from pipeline.models.image_filters import BitDepth, FeatureDistillation, Jpeg, Median, TotalVariation
from pipeline.models.purifiers import GuidedDenoiser, LoadedPurifier, Purifier, RepresentationPurifier
from pipeline.models.settings import AppliesTo, require_setting


@dataclass(frozen=True)
class RandomResizePad:
    """R&P: the network's input at a random size and place on a black canvas, `draws` times.

    Sizes are in proportion to an input of 299 pixels, as published: from [310, 331) by nearest neighbours, on 331.

    Attributes:
        least: Smallest side.
        canvas: Side of the canvas; the largest side is one less.
        draws: Number of forward passes.

    References:
        Xie et al., "Mitigating Adversarial Effects Through Randomization", ICLR 2018, arXiv 1711.01991. Sizes and draws
        are those of their challenge entry, which also flips at random and adds the predictions of an auxiliary head;
        its canvas is zero on [−1, 1], which is grey.
    """

    applies_to: ClassVar[AppliesTo] = "input"
    least: int = 310
    canvas: int = 331
    draws: int = 30

    def __post_init__(self) -> None:
        if not 1 <= self.least < self.canvas <= 2000:
            raise ValueError(f"least = {self.least}, canvas = {self.canvas}: must be 1 ≤ least < canvas ≤ 2000")
        require_setting(1 <= self.draws <= 1000, "draws", self.draws, "must be from 1 to 1000")

    @property
    def forward_passes(self) -> int:
        """Number of forward passes per image."""
        return self.draws

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Inputs (B, 3, N, N) on their canvases, (B, 3, S, S)."""
        least, canvas = (round(side * images.shape[-1] / 299) for side in (self.least, self.canvas))
        sides, top, left = draws.squares(least, canvas)
        rows = _nearest_lines(images, sides, top, canvas)
        return _nearest_lines(rows.mT, sides, left, canvas).mT


def _nearest_lines(images: Tensor, sides: Tensor, start: Tensor, canvas: int) -> Tensor:
    """Images (B, 3, H, W) with H resized by nearest neighbours and placed on a black canvas, (B, 3, canvas, W).

    Args:
        images: The images.
        sides: (B,) int64, lengths after resizing.
        start: (B,) int64, index on the canvas of the first line.
        canvas: Length of the canvas.
    """
    count = images.shape[2]
    places = torch.arange(canvas, device=images.device) - start.view(-1, 1)
    # As torch.nn.functional.interpolate finds the nearest, by a factor in float32.
    nearest = (places * (count / sides.double()).float().view(-1, 1)).floor().long().clamp(0, count - 1)
    lines = images.gather(2, nearest.view(-1, 1, canvas, 1).expand(-1, images.shape[1], -1, images.shape[3]))
    inside = (places >= 0) & (places < sides.view(-1, 1))
    return torch.where(inside.view(-1, 1, canvas, 1), lines, 0)


@dataclass(frozen=True)
class RandomisedSmoothing:
    """The majority of the predictions under Gaussian noise; abstains where the two leading classes are too close.

    It abstains unless a binomial test at level alpha rejects that the two leading classes are equally likely.

    Attributes:
        sigma: Standard deviation of the noise on the image as stored, on [0, 1]; a target that resizes it sees less.
        draws: n, the number of noisy copies.
        alpha: Level of the test.

    References:
        Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, arXiv
        1902.02918, PREDICT.
    """

    applies_to: ClassVar[AppliesTo] = "image"
    sigma: float = 0.25
    draws: int = 100
    alpha: float = 0.001

    def __post_init__(self) -> None:
        require_setting(0 < self.sigma <= 10, "sigma", self.sigma, "must be positive, and at most 10")
        require_setting(1 <= self.draws <= 100_000, "draws", self.draws, "must be from 1 to 100000")
        require_setting(0 < self.alpha < 1, "alpha", self.alpha, "must lie in (0, 1)")
        if 2 * 0.5**self.draws > self.alpha:
            raise ValueError(
                f"draws = {self.draws}, alpha = {self.alpha}: it would abstain even if all draws agree; draw more"
            )

    @property
    def forward_passes(self) -> int:
        """Number of forward passes per image."""
        return self.draws

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape, not clipped to [0, 1]."""
        return images + self.sigma * draws.normal(*images.shape[1:])

    def abstains(self, votes: Tensor) -> Tensor:
        """Whether the majority is too small, (B,) bool, of votes (B, classes)."""
        from scipy import stats  # 45 MB that the driver does without

        leading = votes.topk(2, dim=1).values.long().tolist()
        return torch.tensor(
            [stats.binomtest(first, first + second, 0.5).pvalue > self.alpha for first, second in leading]
        )


Defense = RandomResizePad | BitDepth | Jpeg | FeatureDistillation | TotalVariation | Median | RandomisedSmoothing

# A defense that maps images as it is: purifiers have their network.
ReadyDefense = Defense | LoadedPurifier

# Name in a recipe → the defense.
DEFENSES: dict[str, type[Defense | Purifier]] = {
    "rp": RandomResizePad,
    "bits": BitDepth,
    "jpeg": Jpeg,
    "fd": FeatureDistillation,
    "tv": TotalVariation,
    "median": Median,
    "smoothing": RandomisedSmoothing,
    "nrp": RepresentationPurifier,
    "hgd": GuidedDenoiser,
}


def describe_defenses(defenses: Sequence[Defense | Purifier], digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Everything that determines what defenses do, as JSON values.

    Args:
        defenses: In order.
        digests: Of each purifier's checkpoint the sha256 of its state dict, which is recorded in the path's place.
    """
    descriptions = []
    for defense in defenses:
        description = {"kind": type(defense).__name__, **dataclasses.asdict(defense)}
        if isinstance(defense, (RandomResizePad, RandomisedSmoothing)):
            description["random_numbers"] = RANDOM_NUMBERS
        if "checkpoint" in description:
            description["digest"] = digests[description.pop("checkpoint")]
        descriptions.append(description)
    return descriptions
