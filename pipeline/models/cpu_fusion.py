"""Convolution, padding and ReLU as one operation forward, and one convolution backward: for gradients on a CPU.

Torch computes what comes after a convolution in passes over memory of their own, and the gradient of a convolution by
routines that are slower than a convolution, some of which copy what they are given. But the gradient by the input *is*
a convolution, with the kernel turned round:

    y = min(max(w ∗ x + b, 0), c)        ∂ℓ/∂x = w̃ ∗ (∂ℓ/∂y · [0 < y < c]),    w̃[i, o, u] = w[o, i, k − 1 − u]

With stride s each of the s² phases of the pixels has a kernel of its own, every s-th row and column of w̃.
"""

import copy
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models import module_pairs

log = logging.getLogger(__name__)

Pair = tuple[int, int]
# Rows above, below, columns left, right.
Sides = tuple[int, int, int, int]

_CEILINGS: dict[type[nn.Module], float] = {nn.ReLU: math.inf, nn.ReLU6: 6.0}
# What oneDNN calls them.
_AFTER: dict[float | None, tuple[str, list[float]]] = {
    None: ("none", []),
    math.inf: ("relu", []),
    6.0: ("hardtanh", [0.0, 6.0]),
}
# An image's channels: up to so many, phases are the faster route through a stride.
_FEW = 4


def fused(network: nn.Module, side: int) -> nn.Module:
    """The network with its convolutions, and the ReLUs that take what they give, replaced by `Fused` ones.

    Which ReLUs shows when it is called. Then it is held against the network as it was; where the two differ by more
    than rounding, nothing is replaced.

    Args:
        network: In eval mode, float32, on the CPU, frozen; left as it is.
        side: Of the images that it is tried on.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return network
    made, images = copy.deepcopy(network), module_pairs.trial(network, side)
    convolutions = [each for each in made.modules() if isinstance(each, nn.Conv2d) and _fits(each)]
    if not convolutions:
        return network
    activations = [each for each in made.modules() if type(each) in _CEILINGS]
    pairs = dict(module_pairs.pairs(made, convolutions, activations, images))
    instead: dict[nn.Module, nn.Module] = {activation: nn.Identity() for activation in pairs.values()}
    for convolution in convolutions:
        activation = pairs.get(convolution)
        instead[convolution] = Fused(convolution, _CEILINGS[type(activation)] if activation else None)
    module_pairs.replace(made, instead)
    try:
        inputs = images.requires_grad_()
        torch.autograd.grad(made(inputs).sum(), inputs)
        fuses = module_pairs.agree(network, made, images.detach())
    except (AttributeError, RuntimeError):  # a network that asks its convolutions, or changes what they gave
        fuses = False
    if not fuses:
        log.warning("%s: its convolutions do not fuse", type(network).__name__)
        return network
    return made


def _fits(convolution: nn.Conv2d) -> bool:
    plain = type(convolution) is nn.Conv2d and not isinstance(convolution.padding, str)
    same = type(convolution) is Conv2dSame and convolution.dilation == (1, 1)
    return (plain or same) and convolution.padding_mode == "zeros"


class Fused(nn.Module):
    """A frozen convolution with its padding and the ReLU after it.

    Differentiable by its input only, any number of times. Where the CPU has no routine for the type (float64; bfloat16
    on older ones), it computes as torch does.

    Args:
        convolution: With padding of its own, or one that pads as TensorFlow does ("same").
        ceiling: Of the ReLU after it: infinity, or 6 for a ReLU6; `None` where there is none.
    """

    def __init__(self, convolution: nn.Conv2d, ceiling: float | None) -> None:
        super().__init__()
        self.weight, self.bias, self.ceiling = convolution.weight, convolution.bias, ceiling
        self.stride: Pair = convolution.stride  # type: ignore[assignment]  # torch says tuple[int, ...]
        self.dilation: Pair = convolution.dilation  # type: ignore[assignment]
        self.groups = convolution.groups
        self.same = isinstance(convolution, Conv2dSame)
        self.padding: Pair = convolution.padding  # type: ignore[assignment]
        self._kernels: dict[tuple[Sides, torch.dtype], _Kernel] = {}

    def forward(self, images: Tensor) -> Tensor:
        """What the convolution and its ReLU make of images (B, C, H, W)."""
        # A function of one's own is nothing that autocast knows.
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        sides, images = self._sides(images.shape[2:]), images.to(dtype)
        if (sides, dtype) not in self._kernels:
            self._kernels[sides, dtype] = self._kernel(sides, dtype)
        kernel = self._kernels[sides, dtype]
        if has_routines(dtype):
            answer: Tensor = _Convolution.apply(images, kernel, self.ceiling)
            return answer
        answer = F.conv2d(images, kernel.weight, kernel.bias, self.stride, kernel.padding, self.dilation, self.groups)
        return answer if self.ceiling is None else answer.clamp(0, self.ceiling)

    @torch.inference_mode(False)  # it is kept, and perhaps first wanted where no gradient is
    def _kernel(self, sides: Sides, dtype: torch.dtype) -> "_Kernel":
        weight, bias = (None if each is None else each.detach().to(dtype) for each in (self.weight, self.bias))
        assert weight is not None
        return _Kernel.of(weight, bias, sides, self.stride, self.dilation, self.groups)

    def _sides(self, size: torch.Size) -> Sides:
        if not self.same:
            rows, columns = self.padding
            return rows, rows, columns, columns
        found: list[int] = []
        for length, kernel, stride, dilation in zip(
            size, self.weight.shape[2:], self.stride, self.dilation, strict=True
        ):
            total = max((math.ceil(length / stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
            found += [total // 2, total - total // 2]
        return found[0], found[1], found[2], found[3]

    def _apply(self, *arguments: Any, **named: Any) -> "Fused":
        self._kernels.clear()  # made of weights that lie elsewhere from now on, or are of another type
        super()._apply(*arguments, **named)  # type: ignore[no-untyped-call]
        return self


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A convolution, and the adjoint of its linear part, which gradients go through.

    Attributes:
        weight: (O, I / groups, kH, kW).
        bias: (O,).
        padding: Rows above and below, columns left and right.
        phases: (I·s², O / groups, ⌈kH/s⌉, ⌈kW/s⌉), of the adjoint as a convolution; `None` where it is not the faster.
        margin: Its padding.
    """

    weight: Tensor
    bias: Tensor | None
    padding: Pair
    stride: Pair
    dilation: Pair
    groups: int
    phases: Tensor | None
    margin: Pair

    @classmethod
    def of(
        cls, weight: Tensor, bias: Tensor | None, sides: Sides, stride: Pair, dilation: Pair, groups: int
    ) -> "_Kernel":
        above, below, left, right = sides
        # Padding one row more below than above is the same as both, with a kernel that begins with a row of zeros.
        if (above, left) != (below, right):
            weight = F.pad(weight, (right - left, 0, below - above, 0))
        weight = weight.contiguous(memory_format=torch.channels_last)
        padding = (below, right)
        made = cls(weight, bias, padding, stride, dilation, groups, None, (0, 0))
        if not made._phased():
            return made
        phases, margin = _phases(weight, padding, stride[0], groups)
        return replace(made, phases=phases, margin=margin)

    def forward(self, images: Tensor, ceiling: float | None) -> Tensor:
        """The convolution of images (B, I, H, W), with its bias, cut off at 0 and at a ceiling if there is one."""
        return self._convolve(images, self.bias, ceiling)

    def linear(self, images: Tensor) -> Tensor:
        """The convolution of images (B, I, H, W) without its bias."""
        return self._convolve(images, None, None)

    def _convolve(self, images: Tensor, bias: Tensor | None, ceiling: float | None) -> Tensor:
        return _convolved(images, self.weight, bias, self.padding, self.stride, self.dilation, self.groups, ceiling)

    def _phased(self) -> bool:
        """Whether the adjoint is the faster as a convolution: without a stride, or into few channels."""
        margins = [length - padding for length, padding in zip(self.weight.shape[2:], self.padding, strict=True)]
        few = self.stride[0] == self.stride[1] and self.weight.shape[1] * self.groups <= _FEW
        return self.dilation == (1, 1) and min(margins) > 0 and (self.stride == (1, 1) or few)

    def adjoint(self, gradient: Tensor, size: Pair) -> Tensor:
        """Of a gradient (B, O, H', W'), for images of a size (H, W)."""
        if self.phases is None:
            spans = [
                dilation * (length - 1) + 1
                for dilation, length in zip(self.dilation, self.weight.shape[2:], strict=True)
            ]
            rest = [(size[axis] + 2 * self.padding[axis] - spans[axis]) % self.stride[axis] for axis in (0, 1)]
            return torch.conv_transpose2d(
                gradient, self.weight, None, self.stride, self.padding, rest, self.groups, self.dilation
            )
        step = self.stride[0]
        wanted = [math.ceil(length / step) for length in size]
        have = [gradient.shape[2 + axis] + 2 * self.margin[axis] - self.phases.shape[2 + axis] + 1 for axis in (0, 1)]
        more = [max(wanted[axis] - have[axis], 0) for axis in (0, 1)]
        margin = (self.margin[0] + more[0], self.margin[1] + more[1])
        made = _convolved(gradient, self.phases, None, margin, (1, 1), (1, 1), self.groups, None)
        if step == 1:
            return made
        made = made[..., more[0] : more[0] + wanted[0], more[1] : more[1] + wanted[1]]
        return F.pixel_shuffle(made, step)[..., : size[0], : size[1]]


def _phases(weight: Tensor, padding: Pair, step: int, groups: int) -> tuple[Tensor, Pair]:
    """The adjoint's kernel and padding.

    Output i takes pixels s·i − p + t, 0 ≤ t < k. With p and k multiples of s, p = s·q and k = s·m (zeros see to that),
    and t = s·u + a, pixel s·j + a gets Σᵤ w[s·u + a]·g[j + q − u]: for each phase a a convolution with the kernel
    turned round, padded by m − 1 − q.
    """
    before = [-length % step for length in padding]
    after = [-(length + more) % step for length, more in zip(weight.shape[2:], before, strict=True)]
    weight = F.pad(weight, (before[1], after[1], before[0], after[0]))
    rows, columns = (length // step for length in weight.shape[2:])
    made, taken = weight.shape[:2]
    split = weight.view(groups, made // groups, taken, rows, step, columns, step).permute(0, 2, 4, 6, 1, 3, 5)
    phases = split.reshape(groups * taken * step**2, made // groups, rows, columns).flip(2, 3)
    margin = rows - 1 - (padding[0] + before[0]) // step, columns - 1 - (padding[1] + before[1]) // step
    return phases.contiguous(memory_format=torch.channels_last), margin


def has_routines(dtype: torch.dtype) -> bool:
    """Whether oneDNN has routines for it, on this CPU."""
    has_bfloat16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16)


def _convolved(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Pair,
    stride: Pair,
    dilation: Pair,
    groups: int,
    ceiling: float | None,
) -> Tensor:
    # Torch's own choice would be another routine, three times slower, for 1 × 1 kernels on few images and one thread.
    name, limits = _AFTER[ceiling]
    answer: Tensor = torch.ops.mkldnn._convolution_pointwise(
        images, weight, bias, padding, stride, dilation, groups, name, limits, ""
    )
    return answer


class _Convolution(torch.autograd.Function):
    """Images ↦ the convolution with bias and ReLU."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: _Kernel, ceiling: float | None) -> Tensor:
        answer = kernel.forward(images, ceiling)
        ctx.kernel, ctx.ceiling, ctx.size = kernel, ceiling, images.shape[2:]
        if ceiling is not None:
            ctx.save_for_backward(answer)
        return answer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        if ctx.ceiling is not None:
            gradient = torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0.0, ctx.ceiling)
        return _Linear.apply(gradient, ctx.kernel, ctx.size), None, None


class _Linear(torch.autograd.Function):
    """The linear map, or, where the size of its images is given, the adjoint: each is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: _Kernel, size: Pair | None) -> Tensor:
        ctx.kernel, ctx.back_to = kernel, images.shape[2:] if size is None else None
        return kernel.linear(images) if size is None else kernel.adjoint(images, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Linear.apply(*gradients, ctx.kernel, ctx.back_to), None, None
