"""Defenses around a target: what is done to an image before, or at, the network's input, and how answers are settled.

A defense is a frozen dataclass that maps images to images; a target may have several, applied in the order in which its
recipe names them. What is random is drawn for each image by itself, from (seed, key), so that scoring again gives the
same rows. Where a defense answers several times, probabilities are averaged; randomised smoothing counts votes instead.
"""

import dataclasses
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from scipy import fft, ndimage
from torch import Tensor
from torch.nn import functional as F

from pipeline.attack.draws import Draws
from pipeline.models.purifiers import GuidedDenoiser, Purified, Purifier, RepresentationPurifier

# On the image as it is stored, before the target resizes it; or on the network's input, before it is normalised.
Place = Literal["image", "input"]


@dataclass(frozen=True)
class RandomResizePad:
    """R&P: the network's input at a random size and place on a black canvas, `draws` times.

    Sizes are in proportion to an input of 299 pixels, as published: from [310, 331) by nearest neighbours, on 331.

    Attributes:
        least: Smallest side.
        canvas: Side of the canvas; the largest side is one less.
        draws: How many.

    References:
        Xie et al., "Mitigating Adversarial Effects Through Randomization", ICLR 2018, arXiv 1711.01991. Sizes and draws
        are their challenge entry's, which also flips at random and adds an auxiliary head's answers; its canvas is zero
        on [−1, 1], which is grey.
    """

    place: ClassVar[Place] = "input"
    least: int = 310
    canvas: int = 331
    draws: int = 30

    def __post_init__(self) -> None:
        if not 1 <= self.least < self.canvas <= 2000:
            raise ValueError(f"least = {self.least}, canvas = {self.canvas}: 1 ≤ least < canvas ≤ 2000 is wanted")
        _require(1 <= self.draws <= 1000, "draws", self.draws, "must be from 1 to 1000")

    @property
    def copies(self) -> int:
        """How often the network answers."""
        return self.draws

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Inputs (B, 3, N, N) on their canvases, (B, 3, S, S)."""
        least, canvas = (round(side * images.shape[-1] / 299) for side in (self.least, self.canvas))
        sides = least + draws.below(max(1, canvas - least))
        top, left = ((draws.uniform().double() * (canvas - sides + 1)).long() for _ in range(2))
        placed = []
        for image, side, above, before in zip(images, sides.tolist(), top.tolist(), left.tolist(), strict=True):
            resized = F.interpolate(image.unsqueeze(0), (side, side), mode="nearest")
            placed.append(F.pad(resized, (before, canvas - side - before, above, canvas - side - above)))
        return torch.cat(placed)


@dataclass(frozen=True)
class BitDepth:
    """Values reduced to 2^bits levels: x ↦ round(x·(2^b − 1))/(2^b − 1).

    Attributes:
        bits: b.

    References:
        Xu, Evans and Qi, "Feature Squeezing", NDSS 2018, arXiv 1704.01155.
    """

    place: ClassVar[Place] = "image"
    copies: ClassVar[int] = 1
    bits: int = 4

    def __post_init__(self) -> None:
        _require(1 <= self.bits <= 7, "bits", self.bits, "must be from 1 to 7")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        del draws
        most = 2.0**self.bits - 1
        return torch.round(images * most) / most


@dataclass(frozen=True)
class Jpeg:
    """Compressed as JPEG, colours at half the resolution (4:2:0), and decompressed.

    Attributes:
        quality: As libjpeg counts it.

    References:
        Guo et al., "Countering Adversarial Images Using Input Transformations", ICLR 2018, arXiv 1711.00117.
    """

    place: ClassVar[Place] = "image"
    copies: ClassVar[int] = 1
    quality: int = 75

    def __post_init__(self) -> None:
        _require(1 <= self.quality <= 100, "quality", self.quality, "must be from 1 to 100")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        del draws
        return _each(images, self._compressed)

    def _compressed(self, image: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        pixels = np.round(image.clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)  # noise goes beyond
        Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality, subsampling="4:2:0")
        with Image.open(buffer) as decoded:
            return np.asarray(decoded, dtype=np.float32).transpose(2, 0, 1) / 255


@dataclass(frozen=True)
class FeatureDistillation:
    """Quantised in the frequencies of 8 x 8 blocks, finely where a network looks and coarsely elsewhere.

    Each colour by itself, in [−128, 127], by the orthonormal cosine transform; borders are repeated to whole blocks.
    (Public copies of the authors' code do not shift by 128, and mirror borders.)

    Attributes:
        coarse: The step of quantisation.
        fine: Of the 4 x 4 lowest frequencies.

    References:
        Liu et al., "Feature Distillation: DNN-Oriented JPEG Compression Against Adversarial Examples", CVPR 2019, arXiv
        1803.05787; 30 and 25.
    """

    place: ClassVar[Place] = "image"
    copies: ClassVar[int] = 1
    coarse: float = 30.0
    fine: float = 25.0

    def __post_init__(self) -> None:
        for name in ("coarse", "fine"):
            value = getattr(self, name)
            _require(0 < value <= 2048, name, value, "must be positive, and at most 2048")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        del draws
        return _each(images, self._distilled)

    def _distilled(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[1:]
        padded = np.pad(image * 255 - 128, ((0, 0), (0, -height % 8), (0, -width % 8)), mode="edge")
        rows, columns = padded.shape[1] // 8, padded.shape[2] // 8
        blocks = padded.reshape(3, rows, 8, columns, 8).transpose(0, 1, 3, 2, 4)
        steps = np.full((8, 8), self.coarse)
        steps[:4, :4] = self.fine
        kept = np.round(fft.dctn(blocks, axes=(3, 4), norm="ortho") / steps) * steps
        whole = fft.idctn(kept, axes=(3, 4), norm="ortho").transpose(0, 1, 3, 2, 4).reshape(padded.shape)
        found: np.ndarray = np.clip((whole[:, :height, :width] + 128) / 255, 0, 1)
        return found


@dataclass(frozen=True)
class TotalVariation:
    """Smoothed by minimising its total variation, so that edges stay (Chambolle's algorithm, of scikit-image).

    Attributes:
        weight: How much smoothness counts against likeness.

    References:
        Rudin, Osher and Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 60 (1992).
    """

    place: ClassVar[Place] = "image"
    copies: ClassVar[int] = 1
    weight: float = 0.03

    def __post_init__(self) -> None:
        _require(0 < self.weight <= 10, "weight", self.weight, "must be positive, and at most 10")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        del draws
        from skimage.restoration import denoise_tv_chambolle  # loads scipy.stats, 45 MB that the driver does without

        return _each(images, lambda image: denoise_tv_chambolle(image, weight=self.weight, channel_axis=0)).clamp(0, 1)


@dataclass(frozen=True)
class Median:
    """Each value replaced by the median of a square around it, in each colour.

    Attributes:
        size: Side of the square in pixels.

    References:
        Xu, Evans and Qi, as for bit depth.
    """

    place: ClassVar[Place] = "image"
    copies: ClassVar[int] = 1
    size: int = 3

    def __post_init__(self) -> None:
        _require(2 <= self.size <= 31, "size", self.size, "must be from 2 to 31")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        del draws
        return _each(images, lambda image: ndimage.median_filter(image, size=(1, self.size, self.size), mode="reflect"))


@dataclass(frozen=True)
class RandomisedSmoothing:
    """The majority of the answers under normal noise; where the two classes ahead are too close, it abstains.

    It abstains unless a binomial test at level alpha says that the first is ahead of the second.

    Attributes:
        sigma: Standard deviation of the noise on the image as stored, on [0, 1]; a target that resizes it sees less.
        draws: n, how many answers.
        alpha: Of the test.

    References:
        Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, arXiv
        1902.02918, PREDICT.
    """

    place: ClassVar[Place] = "image"
    sigma: float = 0.25
    draws: int = 100
    alpha: float = 0.001

    def __post_init__(self) -> None:
        _require(0 < self.sigma <= 10, "sigma", self.sigma, "must be positive, and at most 10")
        _require(1 <= self.draws <= 100_000, "draws", self.draws, "must be from 1 to 100000")
        _require(0 < self.alpha < 1, "alpha", self.alpha, "must lie in (0, 1)")
        if 2 * 0.5**self.draws > self.alpha:
            raise ValueError(
                f"draws = {self.draws}, alpha = {self.alpha}: even if all agree it would abstain; draw more"
            )

    @property
    def copies(self) -> int:
        """How often the network answers."""
        return self.draws

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape, not cut off at 0 and 1."""
        return images + self.sigma * draws.normal(*images.shape[1:])

    def abstains(self, votes: Tensor) -> Tensor:
        """Whether the majority is too small, (B,) bool, of votes (B, classes)."""
        from scipy import stats  # as above

        ahead = votes.topk(2, dim=1).values.long().tolist()
        return torch.tensor([stats.binomtest(one, one + other, 0.5).pvalue > self.alpha for one, other in ahead])


Defense = RandomResizePad | BitDepth | Jpeg | FeatureDistillation | TotalVariation | Median | RandomisedSmoothing

# What can be applied as it stands.
Ready = Defense | Purified

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


class Network(Protocol):
    """What is defended."""

    def resized(self, images: Tensor) -> Tensor:
        """Images in [0, 1] at the network's input size."""
        ...

    def classify(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) of resized images."""
        ...


def answer(network: Network, images: Tensor, defenses: Sequence[Ready], draws: Draws) -> tuple[Tensor, Tensor]:
    """What a defended network says.

    Args:
        network: The network.
        images: (B, 3, H, W) float32 in [0, 1].
        defenses: In order; those at the input come after those on the image.
        draws: Of these images.

    Returns:
        Mean probabilities, or shares of votes, (B, classes); and whether it abstains, (B,) bool.
    """
    smoothing = next((defense for defense in defenses if isinstance(defense, RandomisedSmoothing)), None)
    total: Tensor | float = 0.0
    for number, _ in enumerate(itertools.product(*(range(defense.copies) for defense in defenses))):
        draws.begin(number)
        seen = images
        for defense in (each for each in defenses if each.place == "image"):
            seen = defense(seen, draws)
        inputs = network.resized(seen)
        for defense in (each for each in defenses if each.place == "input"):
            inputs = defense(inputs, draws)
        said = network.classify(inputs).softmax(dim=1)
        total = total + (F.one_hot(said.argmax(dim=1), said.shape[1]).to(said) if smoothing else said)
    assert isinstance(total, Tensor)
    never = torch.zeros(len(images), dtype=torch.bool)
    copies = math.prod(defense.copies for defense in defenses)
    return total / copies, smoothing.abstains(total) if smoothing else never


def described(defenses: Sequence[Defense | Purifier], digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Everything that determines what defenses do, as JSON values.

    Args:
        defenses: In order.
        digests: Of the purifiers among them: checkpoint → sha256 of the state dict, which stands in its place.
    """
    found = []
    for defense in defenses:
        settings = {"kind": type(defense).__name__, **dataclasses.asdict(defense)}
        if "checkpoint" in settings:
            settings["digest"] = digests[settings.pop("checkpoint")]
        found.append(settings)
    return found


def _each(images: Tensor, change: Any) -> Tensor:
    """A function of one image, (3, H, W) float in [0, 1], on each of a batch."""
    changed = [np.asarray(change(image), dtype=np.float32) for image in images.cpu().numpy()]
    return torch.from_numpy(np.stack(changed)).to(images)


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value}: {wanted}")
