"""Defenses that are networks: they clean an image before a target sees it, with weights that the user brings.

The weights are published by their authors, in places from which no program can download them unattended.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from pipeline.attack.draws import Draws
from pipeline.models.purifier_networks import HgdNetwork, NrpNetwork
from pipeline.models.settings import AppliesTo, require_setting


@dataclass(frozen=True)
class RepresentationPurifier:
    """NRP: a network trained to undo perturbations of a network's representations.

    Attributes:
        checkpoint: The published weights: `NRP.pth`.
        noise: Standard deviation of the noise that is added first, clipped to ±16/255; the authors' dynamic inference
            has 0.05.

    References:
        Naseer et al., "A Self-supervised Approach for Adversarial Robustness", CVPR 2020, arXiv 2006.04924.
    """

    applies_to: ClassVar[AppliesTo] = "image"
    published_file: ClassVar[str] = (
        "NRP.pth, of the archive of pretrained purifiers that the README of github.com/Muzammal-Naseer/NRP links to"
    )
    checkpoint: str = ""
    noise: float = 0.0

    def __post_init__(self) -> None:
        _require_checkpoint("nrp", self)
        require_setting(0 <= self.noise <= 1, "noise", self.noise, "must lie in [0, 1]")

    def build_network(self) -> nn.Module:
        """The published architecture, without weights."""
        return NrpNetwork()

    def select_weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The network's state dict in a published checkpoint: all of it."""
        return state

    def clean(self, network: nn.Module, images: Tensor, draws: Draws) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], purified."""
        if self.noise:
            noise = (self.noise * draws.normal(*images.shape[1:])).clamp(-16 / 255, 16 / 255)
            images = (images + noise).clamp(0, 1)
        purified: Tensor = network(images)
        return purified.clamp(0, 1)  # the authors' program saves images, which also rounds to 8 bits


@dataclass(frozen=True)
class GuidedDenoiser:
    """HGD: a network trained to take away what a perturbation does to a classifier's high-level features.

    The published one was trained beside an Inception v3 on inputs of 299 pixels, and guards other networks as well
    (section 5.2 of the paper).

    Attributes:
        checkpoint: The published weights: `denoise_incepv3_012.ckpt`.

    References:
        Liao et al., "Defense against Adversarial Attacks Using High-Level Representation Guided Denoiser", CVPR 2018,
        arXiv 1712.02976, figure 3.
    """

    applies_to: ClassVar[AppliesTo] = "input"
    published_file: ClassVar[str] = (
        "denoise_incepv3_012.ckpt, of the checkpoints that github.com/lfz/Guided-Denoise, folder nips_deploy, links to"
    )
    checkpoint: str = ""

    def __post_init__(self) -> None:
        _require_checkpoint("hgd", self)

    def build_network(self) -> nn.Module:
        """The published architecture, without weights."""
        return HgdNetwork()

    def select_weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The denoiser's state dict in a published checkpoint, which may hold a classifier too."""
        selected = {}
        for name, tensor in state.items():
            match = re.search(r"(?:^|denoise\.(?:0\.)?)((?:fwd|back|final)\..+)$", name)
            if match:
                selected[match[1]] = tensor
        return selected

    def clean(self, network: nn.Module, images: Tensor, draws: Draws) -> Tensor:
        """Images (B, 3, N, N) in [0, 1], denoised; not clipped, as the published classifier took them."""
        del draws
        denoised: Tensor = network(2 * images - 1)
        return (denoised + 1) / 2


Purifier = RepresentationPurifier | GuidedDenoiser


@dataclass(frozen=True)
class LoadedPurifier:
    """A purifier with its network, which is applied like any other defense.

    Attributes:
        purifier: The settings.
        network: The network with its weights, on the images' device.
    """

    purifier: Purifier
    network: nn.Module
    forward_passes: ClassVar[int] = 1

    @property
    def applies_to(self) -> AppliesTo:
        """Whether it cleans the image or the network's input."""
        return self.purifier.applies_to

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        return self.purifier.clean(self.network, images, draws)


def _require_checkpoint(name: str, purifier: Purifier) -> None:
    if not purifier.checkpoint:
        raise ValueError(f'{name} = {{ checkpoint = "…" }} is wanted: {purifier.published_file}')
