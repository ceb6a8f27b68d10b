"""Defenses that filter an image without randomness: bit depth, JPEG, feature distillation, total variation, median."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.attack.draws import Draws
from pipeline.models.settings import AppliesTo, require_setting


@dataclass(frozen=True)
class BitDepth:
    """Values reduced to 2^bits levels: x ↦ round(x·(2^b − 1))/(2^b − 1).

    Attributes:
        bits: b.

    References:
        Xu, Evans and Qi, "Feature Squeezing", NDSS 2018, arXiv 1704.01155.
    """

    applies_to: ClassVar[AppliesTo] = "image"
    forward_passes: ClassVar[int] = 1
    bits: int = 4

    def __post_init__(self) -> None:
        require_setting(1 <= self.bits <= 7, "bits", self.bits, "must be from 1 to 7")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        del draws
        highest = 2.0**self.bits - 1
        return torch.round(images * highest) / highest


@dataclass(frozen=True)
class Jpeg:
    """Compressed as JPEG, colours at half the resolution (4:2:0), and decompressed.

    Attributes:
        quality: JPEG quality on libjpeg's scale, 1 to 100.

    References:
        Guo et al., "Countering Adversarial Images Using Input Transformations", ICLR 2018, arXiv 1711.00117.
    """

    applies_to: ClassVar[AppliesTo] = "image"
    forward_passes: ClassVar[int] = 1
    quality: int = 75

    def __post_init__(self) -> None:
        require_setting(1 <= self.quality <= 100, "quality", self.quality, "must be from 1 to 100")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        del draws
        return _filter_each(images, self._compress)

    def _compress(self, image: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        # Clipped, as the noise of randomised smoothing leaves [0, 1].
        pixels = np.round(image.clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality, subsampling="4:2:0")
        with Image.open(buffer) as decoded:
            return np.asarray(decoded, dtype=np.float32).transpose(2, 0, 1) / 255


@dataclass(frozen=True)
class FeatureDistillation:
    """Quantised in the frequencies of 8 x 8 blocks, finely where a network looks and coarsely elsewhere.

    Each colour channel by itself, in [−128, 127], by the orthonormal cosine transform; borders are repeated to whole
    blocks. (Public copies of the authors' code do not shift by 128, and mirror borders.)

    Attributes:
        coarse: Quantisation step of the high frequencies.
        fine: Quantisation step of the 4 x 4 lowest frequencies.

    References:
        Liu et al., "Feature Distillation: DNN-Oriented JPEG Compression Against Adversarial Examples", CVPR 2019, arXiv
        1803.05787; 30 and 25.
    """

    applies_to: ClassVar[AppliesTo] = "image"
    forward_passes: ClassVar[int] = 1
    coarse: float = 30.0
    fine: float = 25.0

    def __post_init__(self) -> None:
        for name in ("coarse", "fine"):
            step = getattr(self, name)
            require_setting(0 < step <= 2048, name, step, "must be positive, and at most 2048")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        del draws
        return _filter_each(images, self._quantise)

    def _quantise(self, image: np.ndarray) -> np.ndarray:
        from scipy import fft

        height, width = image.shape[1:]
        padded = np.pad(image * 255 - 128, ((0, 0), (0, -height % 8), (0, -width % 8)), mode="edge")
        rows, columns = padded.shape[1] // 8, padded.shape[2] // 8
        blocks = padded.reshape(3, rows, 8, columns, 8).transpose(0, 1, 3, 2, 4)
        steps = np.full((8, 8), self.coarse)
        steps[:4, :4] = self.fine
        quantised = np.round(fft.dctn(blocks, axes=(3, 4), norm="ortho") / steps) * steps
        filtered = fft.idctn(quantised, axes=(3, 4), norm="ortho").transpose(0, 1, 3, 2, 4).reshape(padded.shape)
        clipped: np.ndarray = np.clip((filtered[:, :height, :width] + 128) / 255, 0, 1)
        return clipped


@dataclass(frozen=True)
class TotalVariation:
    """Smoothed by minimising its total variation, which keeps edges (Chambolle's algorithm, from scikit-image).

    Attributes:
        weight: Weight of the smoothness against the likeness to the image.

    References:
        Rudin, Osher and Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 60 (1992).
    """

    applies_to: ClassVar[AppliesTo] = "image"
    forward_passes: ClassVar[int] = 1
    weight: float = 0.03

    def __post_init__(self) -> None:
        require_setting(0 < self.weight <= 10, "weight", self.weight, "must be positive, and at most 10")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        del draws
        from skimage.restoration import denoise_tv_chambolle  # loads scipy.stats, 45 MB that the driver does without

        smoothed = _filter_each(images, lambda image: denoise_tv_chambolle(image, weight=self.weight, channel_axis=0))
        return smoothed.clamp(0, 1)


@dataclass(frozen=True)
class Median:
    """Each value replaced by the median of a square around it, in each colour.

    Attributes:
        size: Side of the square in pixels.

    References:
        Xu, Evans and Qi, as for bit depth.
    """

    applies_to: ClassVar[AppliesTo] = "image"
    forward_passes: ClassVar[int] = 1
    size: int = 3

    def __post_init__(self) -> None:
        require_setting(2 <= self.size <= 31, "size", self.size, "must be from 2 to 31")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        del draws
        from scipy import ndimage

        window = (1, self.size, self.size)
        return _filter_each(images, lambda image: ndimage.median_filter(image, size=window, mode="reflect"))


def _filter_each(images: Tensor, filter_image: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """Applies a filter of one image, (3, H, W) float in [0, 1], to every image of a batch (B, 3, H, W)."""
    # As many threads as the worker has; most filters let go of Python's lock.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        filtered = [np.asarray(image, dtype=np.float32) for image in pool.map(filter_image, images.cpu().numpy())]
    return torch.from_numpy(np.stack(filtered)).to(images)
