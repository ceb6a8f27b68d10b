"""Networks of the published purifiers, NRP and HGD; layers are named as in the published files."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NrpNetwork(nn.Module):
    """NRP's 23 residual-in-residual dense blocks: images (B, 3, H, W) in [0, 1] → purified, in about [0, 1]."""

    def __init__(self, blocks: int = 23) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, 64, 3, padding=1)
        self.RRDB_trunk = nn.Sequential(*(_ResidualInResidualBlock() for _ in range(blocks)))
        self.trunk_conv = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Purified images."""
        purified: Tensor = self.trunk_conv(self.RRDB_trunk(self.conv_first(images)))
        return purified


class _ResidualInResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = _DenseBlock(), _DenseBlock(), _DenseBlock()

    def forward(self, features: Tensor) -> Tensor:
        residual = self.RDB3(self.RDB2(self.RDB1(features)))
        output: Tensor = features + 0.2 * residual
        return output


class _DenseBlock(nn.Module):
    def __init__(self, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        for number in range(5):
            out = growth if number < 4 else width
            self.add_module(f"conv{number + 1}", nn.Conv2d(width + number * growth, out, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        *convs, last = self.children()
        stacked = features
        for conv in convs:
            stacked = torch.cat([stacked, F.leaky_relu(conv(stacked), 0.2)], dim=1)
        output: Tensor = features + 0.2 * last(stacked)
        return output


class HgdNetwork(nn.Module):
    """HGD's U-Net, which adds a correction to its input: (B, 3, H, W) in [−1, 1] → denoised, in about [−1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 128, 256, 256, 256]
        self.fwd = nn.ModuleList(
            _convolution_stage(
                3 if stage == 0 else widths[stage - 1], width, depth=2 if stage == 0 else 3, halves=stage > 0
            )
            for stage, width in enumerate(widths)
        )
        self.back = nn.ModuleList(
            _convolution_stage(
                widths[stage] + widths[stage + 1], widths[stage], depth=2 if stage == 0 else 3, halves=False
            )
            for stage in range(len(widths) - 1)
        )
        self.final = nn.Conv2d(widths[0], 3, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Denoised inputs."""
        features = inputs
        skips = []
        for down in self.fwd:
            features = down(features)
            skips.append(features)
        for up, skip in zip(reversed(self.back), reversed(skips[:-1]), strict=True):
            # align_corners was the default of PyTorch when the weights were trained.
            features = F.interpolate(features, skip.shape[-2:], mode="bilinear", align_corners=True)
            features = up(torch.cat([features, skip], dim=1))
        denoised: Tensor = inputs + self.final(features)
        return denoised


def _convolution_stage(channels: int, channels_out: int, *, depth: int, halves: bool) -> nn.Sequential:
    """`depth` blocks of convolution, batch norm and ReLU; the first may halve the resolution."""
    blocks = []
    for number in range(depth):
        stride = 2 if halves and number == 0 else 1
        inputs = channels if number == 0 else channels_out
        block = nn.Sequential()
        block.add_module("conv", nn.Conv2d(inputs, channels_out, 3, stride, padding=1, bias=False))
        block.add_module("bn", nn.BatchNorm2d(channels_out))
        block.add_module("relu", nn.ReLU())
        blocks.append(block)
    return nn.Sequential(*blocks)
