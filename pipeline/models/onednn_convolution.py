"""A convolution with bias and ReLU as one oneDNN operation, and its gradient as another convolution.

Torch computes the gradient of a convolution by routines that are slower than a convolution, some of which copy their
inputs. But the gradient by the input *is* a convolution, with the kernel flipped:

    y = min(max(w ∗ x + b, 0), c)        ∂ℓ/∂x = w̃ ∗ (∂ℓ/∂y · [0 < y < c]),    w̃[i, o, u] = w[o, i, k − 1 − u]

With stride s each of the s² phases of the pixels has its own kernel, every s-th row and column of w̃.

oneDNN computes with weights in an order of its own and would rearrange them at every call; they are kept in that order.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows and columns.
Pair = tuple[int, int]
# Rows above, below, columns left, right.
Sides = tuple[int, int, int, int]

# oneDNN's name and limits of a ReLU with a ceiling.
_ACTIVATIONS: dict[float | None, tuple[str, list[float]]] = {
    None: ("none", []),
    math.inf: ("relu", []),
    6.0: ("hardtanh", [0.0, 6.0]),
}
# Up to this number of input channels (an image's), phases are the faster route through a stride.
_FEW_CHANNELS = 4


def convolve(images: Tensor, kernel: "ConvolutionKernel", ceiling: float | None) -> Tensor:
    """The convolution of images (B, I, H, W) with bias and ReLU; differentiable by the images, any number of times."""
    output: Tensor = _Convolution.apply(images, kernel, ceiling)
    return output


def has_onednn_routines(dtype: torch.dtype) -> bool:
    """Whether oneDNN has routines for a type on this CPU."""
    has_bfloat16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16)


class PackedConvolution:
    """A convolution whose weight is kept in oneDNN's order for the latest shape of images.

    Args:
        weight: (O, I / groups, kH, kW).
        stride: Rows and columns.
        dilation: Rows and columns.
        groups: Number of groups.
    """

    def __init__(self, weight: Tensor, stride: Pair = (1, 1), dilation: Pair = (1, 1), groups: int = 1) -> None:
        self.weight = weight
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self._packed: Tensor | None = None
        self._packed_for: tuple[torch.Size, Pair] | None = None

    def __call__(
        self, images: Tensor, padding: Pair, bias: Tensor | None = None, ceiling: float | None = None
    ) -> Tensor:
        """The convolution of images (B, I, H, W), with bias and, if there is a ceiling, ReLU."""
        if self._packed_for != (images.shape, padding):
            self._pack(images.shape, padding)
        name, limits = _ACTIVATIONS[ceiling]
        # Torch's own choice for 1 × 1 kernels on few images and one thread is a routine that is three times slower.
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, self._packed, bias, padding, self.stride, self.dilation, self.groups, name, limits, ""
        )
        return output

    @torch.inference_mode(False)  # a later call may be one with gradients
    def _pack(self, shape: torch.Size, padding: Pair) -> None:
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, padding, self.stride, self.dilation, self.groups, shape
        )
        self._packed_for = shape, padding

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None, "_packed_for": None}  # torch cannot copy or pickle oneDNN's order


@dataclass(frozen=True, eq=False)
class ConvolutionKernel:
    """A convolution, and the adjoint of its linear part, which computes gradients.

    Attributes:
        convolution: Of weight (O, I / groups, kH, kW).
        bias: (O,).
        padding: Rows above and below, columns left and right.
        phases: The adjoint as a convolution, its weight (s²·I, O / groups, ⌈kH/s⌉, ⌈kW/s⌉); `None` where torch's
            transposed convolution is faster.
        phase_padding: Padding of that convolution.
    """

    convolution: PackedConvolution
    bias: Tensor | None
    padding: Pair
    phases: PackedConvolution | None
    phase_padding: Pair

    @classmethod
    def build(
        cls, weight: Tensor, bias: Tensor | None, sides: Sides, stride: Pair, dilation: Pair, groups: int
    ) -> "ConvolutionKernel":
        """The kernel of a convolution with this padding on each side."""
        above, below, left, right = sides
        # Padding one row more below than above is the same as both, with a kernel that begins with a row of zeros.
        if (above, left) != (below, right):
            weight = F.pad(weight, (right - left, 0, below - above, 0))
        weight = weight.contiguous(memory_format=torch.channels_last)
        padding = (below, right)
        convolution = PackedConvolution(weight, stride, dilation, groups)
        if not _is_faster_in_phases(convolution, padding):
            return cls(convolution, bias, padding, None, (0, 0))
        phases, phase_padding = _adjoint_phases(weight, padding, stride[0], groups)
        return cls(convolution, bias, padding, PackedConvolution(phases, groups=groups), phase_padding)

    def forward(self, images: Tensor, ceiling: float | None) -> Tensor:
        """The convolution of images (B, I, H, W), with bias and, if there is a ceiling, ReLU."""
        return self.convolution(images, self.padding, self.bias, ceiling)

    def linear(self, images: Tensor) -> Tensor:
        """The convolution of images (B, I, H, W) without its bias."""
        return self.convolution(images, self.padding)

    def adjoint(self, gradient: Tensor, size: Pair) -> Tensor:
        """The adjoint of `linear`, for a gradient (B, O, H', W') and images of a size (H, W)."""
        if self.phases is None:
            return self._transposed_convolution(gradient, size)
        step = self.convolution.stride[0]
        needed = [math.ceil(length / step) for length in size]
        kernel = self.phases.weight.shape[2:]
        available = [gradient.shape[2 + axis] + 2 * self.phase_padding[axis] - kernel[axis] + 1 for axis in (0, 1)]
        extra = [max(needed[axis] - available[axis], 0) for axis in (0, 1)]
        padding = (self.phase_padding[0] + extra[0], self.phase_padding[1] + extra[1])
        output = self.phases(gradient, padding)
        if step == 1:
            return output
        output = output[..., extra[0] : extra[0] + needed[0], extra[1] : extra[1] + needed[1]]
        return _interleave(output, step)[..., : size[0], : size[1]]

    def _transposed_convolution(self, gradient: Tensor, size: Pair) -> Tensor:
        convolution = self.convolution
        spans = [
            dilation * (length - 1) + 1
            for dilation, length in zip(convolution.dilation, convolution.weight.shape[2:], strict=True)
        ]
        rest = [(size[axis] + 2 * self.padding[axis] - spans[axis]) % convolution.stride[axis] for axis in (0, 1)]
        return torch.conv_transpose2d(
            gradient,
            convolution.weight,
            None,
            convolution.stride,
            self.padding,
            rest,
            convolution.groups,
            convolution.dilation,
        )


def _is_faster_in_phases(convolution: PackedConvolution, padding: Pair) -> bool:
    """Whether the adjoint is faster as a convolution: without a stride, or into few channels."""
    weight, stride = convolution.weight, convolution.stride
    margins = [length - before for length, before in zip(weight.shape[2:], padding, strict=True)]
    is_narrow = stride[0] == stride[1] and convolution.groups == 1 and weight.shape[1] <= _FEW_CHANNELS
    return convolution.dilation == (1, 1) and min(margins) > 0 and (stride == (1, 1) or is_narrow)


def _interleave(phases: Tensor, step: int) -> Tensor:
    """Pixels (B, C, s·H, s·W) of their phases (B, s²·C, H, W); faster than pixel_shuffle if channels are last."""
    count, channels, rows, columns = phases.shape
    blocks = phases.permute(0, 2, 3, 1).reshape(count, rows, columns, step, channels // step).transpose(2, 3)
    return blocks.reshape(count, step * rows, step * columns, channels // step**2).permute(0, 3, 1, 2)


def _adjoint_phases(weight: Tensor, padding: Pair, step: int, groups: int) -> tuple[Tensor, Pair]:
    """Weight and padding of the adjoint as a convolution.

    Output i takes pixels s·i − p + t, 0 ≤ t < k. With p and k multiples of s, p = s·q and k = s·m (after padding the
    kernel with zeros), and t = s·u + a, pixel s·j + a gets Σᵤ w[s·u + a]·g[j + q − u]: for each phase a a convolution
    with the kernel flipped, padded by m − 1 − q.
    """
    before = [-length % step for length in padding]
    after = [-(length + more) % step for length, more in zip(weight.shape[2:], before, strict=True)]
    weight = F.pad(weight, (before[1], after[1], before[0], after[0]))
    rows, columns = (length // step for length in weight.shape[2:])
    channels_out, channels_in = weight.shape[:2]
    split = weight.view(groups, channels_out // groups, channels_in, rows, step, columns, step)
    phases = split.permute(0, 4, 6, 2, 1, 3, 5)
    phases = phases.reshape(groups * channels_in * step**2, channels_out // groups, rows, columns).flip(2, 3)
    phase_padding = rows - 1 - (padding[0] + before[0]) // step, columns - 1 - (padding[1] + before[1]) // step
    return phases.contiguous(memory_format=torch.channels_last), phase_padding


class _Convolution(torch.autograd.Function):
    """The convolution with bias and ReLU."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: ConvolutionKernel, ceiling: float | None) -> Tensor:
        output = kernel.forward(images, ceiling)
        ctx.kernel, ctx.ceiling, ctx.size = kernel, ceiling, images.shape[2:]
        if ceiling is not None:
            ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        if ctx.ceiling is not None:
            gradient = torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0.0, ctx.ceiling)
        return _Linear.apply(gradient, ctx.kernel, ctx.size), None, None


class _Linear(torch.autograd.Function):
    """The linear map or, given the size of its images, its adjoint: each is the gradient of the other."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: ConvolutionKernel, size: Pair | None) -> Tensor:
        ctx.kernel, ctx.adjoint_size = kernel, images.shape[2:] if size is None else None
        return kernel.linear(images) if size is None else kernel.adjoint(images, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Linear.apply(*gradients, ctx.kernel, ctx.adjoint_size), None, None
