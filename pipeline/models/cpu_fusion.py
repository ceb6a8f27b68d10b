"""Replaces convolutions and the ReLUs after them by fused ones, for faster gradients on a CPU.

Torch computes what comes after a convolution in separate passes over memory, and the gradient of a convolution by
routines that are slower than a convolution; `onednn_convolution` has the faster ones.
"""

import copy
import logging
import math
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.module_pairs import find_pairs, outputs_agree, replace_modules, trial_image
from pipeline.models.onednn_convolution import ConvolutionKernel, Pair, Sides, convolve, has_onednn_routines

log = logging.getLogger(__name__)

_CEILINGS: dict[type[nn.Module], float] = {nn.ReLU: math.inf, nn.ReLU6: 6.0}


def fuse_convolutions(network: nn.Module, side: int) -> nn.Module:
    """A copy of a network whose convolutions, with the ReLUs of their outputs, are `FusedConvolution`s.

    The ReLUs are found by calling the network. Then the copy is compared with the network; where the two differ by more
    than rounding, the network itself is returned.

    Args:
        network: In eval mode, float32, on the CPU, frozen; not changed.
        side: Side of the trial image in pixels.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return network
    fused = copy.deepcopy(network)
    images = trial_image(network, side)
    convolutions = [module for module in fused.modules() if isinstance(module, nn.Conv2d) and _is_supported(module)]
    if not convolutions:
        return network
    activations = [module for module in fused.modules() if type(module) in _CEILINGS]
    pairs = dict(find_pairs(fused, convolutions, activations, images))
    replacements: dict[nn.Module, nn.Module] = {activation: nn.Identity() for activation in pairs.values()}
    for convolution in convolutions:
        activation = pairs.get(convolution)
        replacements[convolution] = FusedConvolution(convolution, _CEILINGS[type(activation)] if activation else None)
    replace_modules(fused, replacements)
    if not _computes_the_same(network, fused, images):
        log.warning("%s: its convolutions cannot be fused", type(network).__name__)
        return network
    return fused


def _is_supported(convolution: nn.Conv2d) -> bool:
    is_plain = type(convolution) is nn.Conv2d and not isinstance(convolution.padding, str)
    is_same = type(convolution) is Conv2dSame and convolution.dilation == (1, 1)
    return (is_plain or is_same) and convolution.padding_mode == "zeros"


def _computes_the_same(network: nn.Module, fused: nn.Module, images: Tensor) -> bool:
    try:
        inputs = images.clone().requires_grad_()
        torch.autograd.grad(fused(inputs).sum(), inputs)
        return outputs_agree(network, fused, images)
    except (AttributeError, RuntimeError):  # a network that reads its convolutions' attributes, or edits their outputs
        return False


class FusedConvolution(nn.Module):
    """A frozen convolution with its padding and the ReLU after it.

    Differentiable only by its input, any number of times. Where the CPU has no routine for the type (float64; bfloat16
    on older CPUs), torch computes it.

    Args:
        convolution: With padding on all sides, or one that pads as TensorFlow does ("same").
        ceiling: Upper bound of the ReLU after it: infinity, or 6 for a ReLU6; `None` without a ReLU.
    """

    def __init__(self, convolution: nn.Conv2d, ceiling: float | None) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.ceiling = ceiling
        self.stride: Pair = convolution.stride  # type: ignore[assignment]  # torch says tuple[int, ...]
        self.dilation: Pair = convolution.dilation  # type: ignore[assignment]
        self.groups = convolution.groups
        self.pads_same = isinstance(convolution, Conv2dSame)
        self.padding: Pair = convolution.padding  # type: ignore[assignment]
        self._kernels: dict[tuple[Sides, torch.dtype], ConvolutionKernel] = {}

    def forward(self, images: Tensor) -> Tensor:
        """The convolution and its ReLU on images (B, C, H, W)."""
        # Autocast does not cast the inputs of custom functions.
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        sides = self._padding_sides(images.shape[2:])
        images = images.to(dtype)
        if (sides, dtype) not in self._kernels:
            self._kernels[sides, dtype] = self._build_kernel(sides, dtype)
        kernel = self._kernels[sides, dtype]
        if has_onednn_routines(dtype):
            return convolve(images, kernel, self.ceiling)
        output = F.conv2d(
            images, kernel.convolution.weight, kernel.bias, self.stride, kernel.padding, self.dilation, self.groups
        )
        return output if self.ceiling is None else output.clamp(0, self.ceiling)

    @torch.inference_mode(False)  # the kernel is cached, and its first call may be one without gradients
    def _build_kernel(self, sides: Sides, dtype: torch.dtype) -> ConvolutionKernel:
        weight = self.weight.detach().to(dtype)
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return ConvolutionKernel.build(weight, bias, sides, self.stride, self.dilation, self.groups)

    def _padding_sides(self, size: torch.Size) -> Sides:
        if not self.pads_same:
            rows, columns = self.padding
            return rows, rows, columns, columns
        sides: list[int] = []
        for length, kernel, stride, dilation in zip(
            size, self.weight.shape[2:], self.stride, self.dilation, strict=True
        ):
            total = max((math.ceil(length / stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
            sides += [total // 2, total - total // 2]
        return sides[0], sides[1], sides[2], sides[3]

    def _apply(self, *arguments: Any, **options: Any) -> "FusedConvolution":
        self._kernels.clear()  # the weights move to another device or become another type
        super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]
        return self
