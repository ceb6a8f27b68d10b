"""Defenses that are networks: they clean an image before a target sees it, with weights that the user brings.

The weights are their authors' and lie where no program can fetch them unasked. Names of layers are the published files'
own, so that these load as they are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.attack.draws import Draws


@dataclass(frozen=True)
class RepresentationPurifier:
    """NRP: a network trained to undo perturbations of a network's representations.

    Attributes:
        checkpoint: The published weights: `NRP.pth`.
        noise: Standard deviation of the noise that is added first, cut off at 16/255; the authors' dynamic inference
            has 0.05.

    References:
        Naseer et al., "A Self-supervised Approach for Adversarial Robustness", CVPR 2020, arXiv 2006.04924.
    """

    place: ClassVar[Literal["image", "input"]] = "image"
    copies: ClassVar[int] = 1
    wanted: ClassVar[str] = (
        "NRP.pth, of the archive of pretrained purifiers that the README of github.com/Muzammal-Naseer/NRP links to"
    )
    checkpoint: str = ""
    noise: float = 0.0

    def __post_init__(self) -> None:
        _require_checkpoint("nrp", self.checkpoint, self.wanted)
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise = {self.noise}: must lie in [0, 1]")

    def network(self, state: Mapping[str, Tensor] | None = None) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The published architecture, and of a published checkpoint what belongs to it."""
        return PurifierNetwork(), state or {}

    def clean(self, network: nn.Module, images: Tensor, draws: Draws) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], purified."""
        if self.noise:
            noise = (self.noise * draws.normal(*images.shape[1:])).clamp(-16 / 255, 16 / 255)
            images = (images + noise).clamp(0, 1)
        purified: Tensor = network(images)
        return purified.clamp(0, 1)  # the authors' program saves them, rounded to 8 bits as well


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

    place: ClassVar[Literal["image", "input"]] = "input"
    copies: ClassVar[int] = 1
    wanted: ClassVar[str] = (
        "denoise_incepv3_012.ckpt, of the checkpoints that github.com/lfz/Guided-Denoise, folder nips_deploy, links to"
    )
    checkpoint: str = ""

    def __post_init__(self) -> None:
        _require_checkpoint("hgd", self.checkpoint, self.wanted)

    def network(self, state: Mapping[str, Tensor] | None = None) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The published architecture, and what belongs to it of a checkpoint, which may hold a classifier too."""
        own = {}
        for name, tensor in (state or {}).items():
            found = re.search(r"(?:^|denoise\.(?:0\.)?)((?:fwd|back|final)\..+)$", name)
            if found:
                own[found[1]] = tensor
        return DenoiserNetwork(), own

    def clean(self, network: nn.Module, images: Tensor, draws: Draws) -> Tensor:
        """Images (B, 3, N, N) in [0, 1], denoised; not cut off, as the classifier that it guards saw them."""
        del draws
        denoised: Tensor = network(2 * images - 1)
        return (denoised + 1) / 2


Purifier = RepresentationPurifier | GuidedDenoiser


@dataclass(frozen=True)
class Purified:
    """A purifier with its network: a defense like any other.

    Attributes:
        purifier: Which.
        network: Its network, with weights, where the images lie.
    """

    purifier: Purifier
    network: nn.Module
    copies: ClassVar[int] = 1

    @property
    def place(self) -> Literal["image", "input"]:
        """Whether it cleans the image or the network's input."""
        return self.purifier.place

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Images of the same shape."""
        return self.purifier.clean(self.network, images, draws)


class PurifierNetwork(nn.Module):
    """NRP's 23 residual-in-residual dense blocks, (B, 3, H, W) in [0, 1] → the same, about."""

    def __init__(self, blocks: int = 23) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, 64, 3, padding=1)
        self.RRDB_trunk = nn.Sequential(*(_ResidualInResidual() for _ in range(blocks)))
        self.trunk_conv = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Purified images."""
        purified: Tensor = self.trunk_conv(self.RRDB_trunk(self.conv_first(images)))
        return purified


class _ResidualInResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = _Dense(), _Dense(), _Dense()

    def forward(self, seen: Tensor) -> Tensor:
        found: Tensor = seen + 0.2 * self.RDB3(self.RDB2(self.RDB1(seen)))
        return found


class _Dense(nn.Module):
    def __init__(self, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        for number in range(5):
            out = growth if number < 4 else width
            self.add_module(f"conv{number + 1}", nn.Conv2d(width + number * growth, out, 3, padding=1))

    def forward(self, seen: Tensor) -> Tensor:
        known, (*convs, last) = seen, self.children()
        for conv in convs:
            known = torch.cat([known, F.leaky_relu(conv(known), 0.2)], dim=1)
        found: Tensor = seen + 0.2 * last(known)
        return found


class DenoiserNetwork(nn.Module):
    """HGD's U-net, which adds to its input what a perturbation took away, (B, 3, H, W) in [−1, 1] → the same, about."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 128, 256, 256, 256]
        self.fwd = nn.ModuleList(
            _convolutions(3 if stage == 0 else widths[stage - 1], width, depth=2 if stage == 0 else 3, halves=stage > 0)
            for stage, width in enumerate(widths)
        )
        self.back = nn.ModuleList(
            _convolutions(widths[stage] + widths[stage + 1], widths[stage], depth=2 if stage == 0 else 3, halves=False)
            for stage in range(len(widths) - 1)
        )
        self.final = nn.Conv2d(widths[0], 3, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Denoised inputs."""
        out, kept = inputs, []
        for down in self.fwd:
            out = down(out)
            kept.append(out)
        for up, beside in zip(reversed(self.back), reversed(kept[:-1]), strict=True):
            # As PyTorch of that time enlarged.
            out = F.interpolate(out, beside.shape[-2:], mode="bilinear", align_corners=True)
            out = up(torch.cat([out, beside], dim=1))
        denoised: Tensor = inputs + self.final(out)
        return denoised


def _convolutions(width: int, out: int, *, depth: int, halves: bool) -> nn.Sequential:
    blocks = []
    for number in range(depth):
        block = nn.Sequential()
        stride = 2 if halves and number == 0 else 1
        block.add_module("conv", nn.Conv2d(width if number == 0 else out, out, 3, stride, padding=1, bias=False))
        block.add_module("bn", nn.BatchNorm2d(out))
        block.add_module("relu", nn.ReLU())
        blocks.append(block)
    return nn.Sequential(*blocks)


def _require_checkpoint(name: str, checkpoint: str, wanted: str) -> None:
    if not checkpoint:
        raise ValueError(f'{name} = {{ checkpoint = "…" }} is wanted: {wanted}')
