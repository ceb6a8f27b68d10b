"""The classifier: a network with its preprocessing, which takes images in [0, 1]."""

import copy
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.attack.precision import compute_in
from pipeline.models.batchnorm_folding import fold_batchnorms
from pipeline.models.cpu_fusion import fuse_convolutions
from pipeline.models.gpu_networks import LAUNCH, GpuNetwork

# How an image is resized to a network's input size; see `resize`.
Policy = Literal["direct", "crop"]


class Classifier(nn.Module):
    """A frozen network that resizes and normalises its images itself.

    Resizing is done on float pixels with antialiasing and is not clamped: a linear map, differentiable, the same on
    every device, and what PIL computes on images of mode F.

    Attributes:
        preprocessing: Input size, interpolation, mean, std and policy, part of the model's identity.
        digest: sha256 of the network's state dict.
        args: Arguments of the network's constructor that change its function, beside what a state dict holds.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, preprocessing: dict[str, Any], args: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        # Channels last: a third faster on a CPU, and the layout that tensor cores need.
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last)
        self.preprocessing = preprocessing
        self.digest = state_digest(network)
        self.args = dict(args or {})
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocessing["mean"]).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing["std"]).view(shape), persistent=False)
        self.eval()

    def optimize_for(self, device: torch.device, *, launch: str = LAUNCH) -> "Classifier":
        """Replaces the network by a faster one with the same outputs, moves it to a device, and returns itself.

        The digest remains that of the weights as loaded.

        Args:
            device: The device.
            launch: How a GPU is given the network's operations, one of `gpu_networks.LAUNCHES`.
        """
        side = self.preprocessing["input_size"]
        network = fold_batchnorms(self.network, side)
        self.network = fuse_convolutions(network, side) if device.type == "cpu" else GpuNetwork(network, launch)
        return self.to(device)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) float32 of images (B, 3, H, W) float32 in [0, 1]."""
        return self.classify(self.resized(images))

    def resized(self, images: Tensor) -> Tensor:
        """Images at the network's input size, (B, 3, N, N) in [0, 1]."""
        return resize(
            images,
            policy=self.preprocessing["policy"],
            input_size=self.preprocessing["input_size"],
            interpolation=self.preprocessing["interpolation"],
        )

    def enlarged(self, rate: float) -> "Classifier":
        """The same network with an input `rate` times as large; it must be one that takes several input sizes."""
        larger = copy.copy(self)
        larger.preprocessing = {**self.preprocessing, "input_size": int(self.preprocessing["input_size"] * rate)}
        return larger

    def classify(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) of images at the network's input size, or at another size that it takes."""
        normalised = ((inputs - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(normalised)
        return logits


def resize(images: Tensor, *, policy: Policy, input_size: int, interpolation: str) -> Tensor:
    """Images (B, 3, H, W) float32 at a model's input size, (B, 3, input_size, input_size), under a named policy."""
    if policy == "crop":
        height, width = images.shape[-2:]
        scale = 256 / min(height, width)
        images = _resample(images, round(height * scale), round(width * scale), interpolation)
        top, left = (images.shape[-2] - 224) // 2, (images.shape[-1] - 224) // 2
        images = images[..., top : top + 224, left : left + 224]
    return _resample(images, input_size, input_size, interpolation)


def _resample(images: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    if images.device.type == "cpu":
        return F.interpolate(images, (height, width), mode=interpolation, align_corners=False, antialias=True)
    return resample_by_products(images, height, width, interpolation)


def resample_by_products(images: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Images (B, C, H, W) as `torch.nn.functional.interpolate` resizes them with antialiasing, as two matrix products.

    The backward pass of `interpolate` on a GPU adds in an order that changes from call to call; that of products does
    not. The products are in full precision, whatever the context; in TF32, those of their gradients are not.
    """
    rows = _resampling_matrix(images.shape[-2], height, interpolation, images.device)
    columns = _resampling_matrix(images.shape[-1], width, interpolation, images.device)
    with compute_in("float32", images.device):
        return rows.to(images.dtype) @ images @ columns.to(images.dtype).mT


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the matrix is kept, and its first use may be one without gradients
def _resampling_matrix(before: int, after: int, interpolation: str, device: torch.device) -> Tensor:
    """The linear map of a line of pixels to another length, (after, before) float32: its columns are resized units."""
    units = torch.eye(before).view(1, 1, before, before)
    matrix = F.interpolate(units, (after, before), mode=interpolation, align_corners=False, antialias=True)
    return matrix[0, 0].to(device)


def state_digest(network: nn.Module) -> str:
    """sha256 over every tensor of a network's state dict: name, dtype, shape and bytes, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
