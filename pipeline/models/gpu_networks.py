"""Networks as GPUs run them: gradients that repeat their bytes, weights in bfloat16, and ways to launch operations."""

import copy
import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.device import is_broken_by, is_out_of_memory
from pipeline.models.module_pairs import find_pairs, replace_modules

log = logging.getLogger(__name__)


class GpuNetwork(nn.Module):
    """A network as a GPU runs it: in float32, or within autocast, in bfloat16.

    Args:
        network: In eval mode, frozen; not changed.
        launch: How its operations are launched, one of `LAUNCHES`.
    """

    def __init__(self, network: nn.Module, launch: str) -> None:
        super().__init__()
        self.network = for_gpu(network)
        self._launch = launch
        self._launched: dict[torch.dtype, nn.Module | None] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) float32 of inputs (B, 3, N, N) float32."""
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                lower = self._in(torch.bfloat16, inputs)
                if lower is not None:
                    return lower(inputs.to(torch.bfloat16)).float()  # type: ignore[no-any-return]
        network = self._in(torch.float32, inputs)
        assert network is not None
        return network(inputs)  # type: ignore[no-any-return]

    @torch.inference_mode(False)  # what is made is kept, and its first use may be one without gradients
    def _in(self, dtype: torch.dtype, inputs: Tensor) -> nn.Module | None:
        if dtype not in self._launched:
            one = inputs.detach()[:1].to(dtype)
            network = self.network if dtype == torch.float32 else in_bfloat16(self.network, one)
            self._launched[dtype] = network and LAUNCHES[self._launch](network, one)
        return self._launched[dtype]


def for_gpu(network: nn.Module) -> nn.Module:
    """A copy of a network with the same outputs, whose max-pooling adds in one order and whose ReLU6 makes no clone."""
    adapted = copy.deepcopy(network)
    for module in adapted.modules():
        if isinstance(
            module, nn.Hardtanh
        ):  # as ReLU6 is: its gradient needs the input, which in place has to be cloned
            module.inplace = False
    pools = [module for module in adapted.modules() if type(module) is nn.MaxPool2d]
    replace_modules(adapted, {pool: RepeatableMaxPool(pool) for pool in pools if RepeatableMaxPool.supports(pool)})
    return adapted


class RepeatableMaxPool(nn.Module):
    """Max-pooling, first over rows and then over columns, whose gradient adds in one order.

    The backward pass of torch's own adds atomically on CUDA, in an order that changes from call to call. Of equal
    values the first row's is chosen, and of these the first column's.

    Args:
        pool: The pooling that it replaces.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = (_pair(each) for each in (pool.kernel_size, pool.stride, pool.padding))

    @staticmethod
    def supports(pool: nn.MaxPool2d) -> bool:
        """Whether a pooling can be replaced."""
        return _pair(pool.dilation) == (1, 1) and not pool.ceil_mode and not pool.return_indices

    def forward(self, images: Tensor) -> Tensor:
        """The largest values of each window of (B, C, H, W)."""
        rows, columns = self.padding
        padded = F.pad(images, (columns, columns, rows, rows), value=-torch.inf) if rows or columns else images
        of_rows = _largest(padded.mT, self.kernel[0], self.stride[0]).mT
        return _largest(of_rows, self.kernel[1], self.stride[1])


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _largest(values: Tensor, kernel: int, stride: int) -> Tensor:
    """The largest of each window along the last axis."""
    last = values.shape[-1] - kernel
    largest = values[..., : last + 1 : stride]
    for offset in range(1, kernel):
        candidate = values[..., offset : last + offset + 1 : stride]
        largest = torch.where((candidate > largest) | candidate.isnan(), candidate, largest)
    return largest


def in_bfloat16(network: nn.Module, inputs: Tensor) -> nn.Module | None:
    """A copy of a network with weights in bfloat16; None if it fails there, where autocast may not.

    Autocast casts frozen weights anew in every forward pass.

    Args:
        network: In float32.
        inputs: (B, 3, N, N) bfloat16, on which it is tried.
    """
    lower = copy.deepcopy(network).to(torch.bfloat16)
    try:
        with torch.no_grad():
            lower(inputs)
    except RuntimeError as error:  # it mixes dtypes of its own
        if is_out_of_memory(error) or is_broken_by(error):
            raise
        log.warning("%s: not in bfloat16 throughout: %s", type(network).__name__, str(error).partition("\n")[0])
        return None
    return lower


# --- ways to launch a network's operations; gpu-check measures them ---------------------------------------------------

# The way that is used, until a GPU has shown which is fastest.
LAUNCH = "eager"


class CudaGraphs(nn.Module):
    """A network whose forward and backward passes are CUDA graphs, one pair for each shape of its inputs.

    Not for second derivatives, nor for two forward passes before a backward pass: both would use the same memory. So
    an ensemble may not hold a network twice.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._graphs: dict[tuple[torch.Size, torch.dtype, bool], Callable[[Tensor], Tensor]] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes), by the graphs where a gradient is wanted."""
        if not (torch.is_grad_enabled() and inputs.requires_grad):
            return self.network(inputs)  # type: ignore[no-any-return]
        key = inputs.shape, inputs.dtype, torch.backends.cudnn.allow_tf32  # what is captured stays as it was then
        if key not in self._graphs:
            capture: Any = torch.cuda.make_graphed_callables
            # Of a function: it would change a module.
            self._graphs[key] = capture(
                lambda images: self.network(images), (torch.empty_like(inputs).requires_grad_(),)
            )
        return self._graphs[key](inputs)


class CudnnConvolutionRelu(nn.Module):
    """A convolution and the ReLU after it as one operation of cuDNN.

    Args:
        convolution: Frozen, with equal padding on all sides.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.settings = convolution.stride, convolution.padding, convolution.dilation, convolution.groups

    def forward(self, images: Tensor) -> Tensor:
        """The convolution of images (B, C, H, W), without what is below 0."""
        output: Tensor = _CudnnConvolutionRelu.apply(images, self.weight, self.bias, *self.settings)
        return output


class _CudnnConvolutionRelu(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        output = torch.cudnn_convolution_relu(images, weight, bias, *settings)
        context.save_for_backward(images, weight, output)
        context.settings = settings
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        images, weight, output = context.saved_tensors
        stride, padding, dilation, groups = context.settings
        before = torch.ops.aten.threshold_backward(gradient, output, 0)
        wanted = [True, False, False]
        found, _, _ = torch.ops.aten.convolution_backward(
            before, images, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        return found, *[None] * 6


def fuse_by_cudnn(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy of a network in which cuDNN computes convolutions together with the ReLUs after them.

    Args:
        network: In eval mode, frozen.
        images: Inputs, on its device, by which the pairs are found.
    """
    fused = copy.deepcopy(network)
    convolutions = [
        module for module in fused.modules() if type(module) is nn.Conv2d and not isinstance(module.padding, str)
    ]
    pairs = find_pairs(fused, convolutions, [module for module in fused.modules() if type(module) is nn.ReLU], images)
    for convolution, activation in pairs:
        replace_modules(fused, {convolution: CudnnConvolutionRelu(convolution), activation: nn.Identity()})
    return fused


# Name → the network as it is launched, for inputs like the given ones (B, 3, N, N).
LAUNCHES: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "eager": lambda network, _: network,
    "CUDA graphs": lambda network, _: CudaGraphs(network),
    "cuDNN's ReLUs": fuse_by_cudnn,
    "cuDNN's ReLUs in CUDA graphs": lambda network, images: CudaGraphs(fuse_by_cudnn(network, images)),
    "torch.compile": lambda network, _: cast("nn.Module", torch.compile(network)),
}
