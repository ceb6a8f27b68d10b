"""A convolution with bias and ReLU as one oneDNN operation, and its gradient as another convolution.

Torch computes the gradient of a convolution by routines that are slower than a convolution, some of which copy their
inputs. But the gradient by the input *is* a convolution, with the kernel flipped:

    y = min(max(w ∗ x + b, 0), c)        ∂ℓ/∂x = w̃ ∗ (∂ℓ/∂y · [0 < y < c]),    w̃[i, o, u] = w[o, i, k − 1 − u]

With stride s each of the s² phases of the pixels has its own kernel, every s-th row and column of w̃.
"""

import math
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, eq=False)
class ConvolutionKernel:
    """A convolution, and the adjoint of its linear part, which computes gradients.

    Attributes:
        weight: (O, I / groups, kH, kW).
        bias: (O,).
        padding: Rows above and below, columns left and right.
        stride: Rows and columns.
        dilation: Rows and columns.
        groups: Number of groups.
        phases: Weight of the adjoint as a convolution, (I·s², O / groups, ⌈kH/s⌉, ⌈kW/s⌉); `None` where torch's
            transposed convolution is faster.
        phase_padding: Padding of that convolution.
    """

    weight: Tensor
    bias: Tensor | None
    padding: Pair
    stride: Pair
    dilation: Pair
    groups: int
    phases: Tensor | None
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
        kernel = cls(weight, bias, padding, stride, dilation, groups, None, (0, 0))
        if not kernel._is_faster_in_phases():
            return kernel
        phases, phase_padding = _adjoint_phases(weight, padding, stride[0], groups)
        return replace(kernel, phases=phases, phase_padding=phase_padding)

    def forward(self, images: Tensor, ceiling: float | None) -> Tensor:
        """The convolution of images (B, I, H, W), with bias and, if there is a ceiling, ReLU."""
        return self._convolve(images, self.bias, ceiling)

    def linear(self, images: Tensor) -> Tensor:
        """The convolution of images (B, I, H, W) without its bias."""
        return self._convolve(images, None, None)

    def _convolve(self, images: Tensor, bias: Tensor | None, ceiling: float | None) -> Tensor:
        return _convolve_onednn(
            images, self.weight, bias, self.padding, self.stride, self.dilation, self.groups, ceiling
        )

    def _is_faster_in_phases(self) -> bool:
        """Whether the adjoint is faster as a convolution: without a stride, or into few channels."""
        margins = [length - padding for length, padding in zip(self.weight.shape[2:], self.padding, strict=True)]
        is_narrow = self.stride[0] == self.stride[1] and self.weight.shape[1] * self.groups <= _FEW_CHANNELS
        return self.dilation == (1, 1) and min(margins) > 0 and (self.stride == (1, 1) or is_narrow)

    def adjoint(self, gradient: Tensor, size: Pair) -> Tensor:
        """The adjoint of `linear`, for a gradient (B, O, H', W') and images of a size (H, W)."""
        if self.phases is None:
            return self._transposed_convolution(gradient, size)
        step = self.stride[0]
        needed = [math.ceil(length / step) for length in size]
        available = [
            gradient.shape[2 + axis] + 2 * self.phase_padding[axis] - self.phases.shape[2 + axis] + 1 for axis in (0, 1)
        ]
        extra = [max(needed[axis] - available[axis], 0) for axis in (0, 1)]
        padding = (self.phase_padding[0] + extra[0], self.phase_padding[1] + extra[1])
        output = _convolve_onednn(gradient, self.phases, None, padding, (1, 1), (1, 1), self.groups, None)
        if step == 1:
            return output
        output = output[..., extra[0] : extra[0] + needed[0], extra[1] : extra[1] + needed[1]]
        return F.pixel_shuffle(output, step)[..., : size[0], : size[1]]

    def _transposed_convolution(self, gradient: Tensor, size: Pair) -> Tensor:
        spans = [
            dilation * (length - 1) + 1 for dilation, length in zip(self.dilation, self.weight.shape[2:], strict=True)
        ]
        rest = [(size[axis] + 2 * self.padding[axis] - spans[axis]) % self.stride[axis] for axis in (0, 1)]
        return torch.conv_transpose2d(
            gradient, self.weight, None, self.stride, self.padding, rest, self.groups, self.dilation
        )


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
    phases = split.permute(0, 2, 4, 6, 1, 3, 5)
    phases = phases.reshape(groups * channels_in * step**2, channels_out // groups, rows, columns).flip(2, 3)
    phase_padding = rows - 1 - (padding[0] + before[0]) // step, columns - 1 - (padding[1] + before[1]) // step
    return phases.contiguous(memory_format=torch.channels_last), phase_padding


def _convolve_onednn(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Pair,
    stride: Pair,
    dilation: Pair,
    groups: int,
    ceiling: float | None,
) -> Tensor:
    # By itself torch would choose a routine that is three times slower for 1 × 1 kernels on few images and one thread.
    name, limits = _ACTIVATIONS[ceiling]
    output: Tensor = torch.ops.mkldnn._convolution_pointwise(
        images, weight, bias, padding, stride, dilation, groups, name, limits, ""
    )
    return output


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
