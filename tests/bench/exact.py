"""Time and memory of the Hessian-vector product of the exact penalty, by different methods."""

import json
import statistics

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models import malloc
from pipeline.models.batchnorm_folding import fold_batchnorms
from pipeline.models.cpu_fusion import fuse_convolutions
from tests.bench.figures import seconds
from tests.scale.processes import peak_mb

ROUTES = ("a gradient", "difference of two gradients", "double backward", "forward over reverse")
BATCH, SIDE = 4, 224


def route(name: str, fast: str) -> dict[str, float]:
    """Seconds and memory for a batch on EfficientNet-Lite0; run in a new process.

    Args:
        name: One of ROUTES.
        fast: JSON: true for fused convolutions, false for torch's own.
    """
    torch.set_num_threads(1)
    malloc.keep_freed_memory()
    torch.manual_seed(0)
    network = fold_batchnorms(timm.create_model("tf_efficientnet_lite0").eval().requires_grad_(False), SIDE)
    network = fuse_convolutions(network, SIDE) if json.loads(fast) else network
    images = torch.rand(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    step = torch.randn_like(images) / 1000
    before = peak_mb()
    times = [seconds(lambda: _product(name, network, images, step)) for _ in range(4)][1:]
    return {"seconds": statistics.median(times), "peak_mb": peak_mb() - before}


def _product(name: str, network: nn.Module, images: Tensor, step: Tensor) -> Tensor:
    labels = torch.zeros(len(images), dtype=torch.int64)

    def gradient(at: Tensor, *, differentiable: bool = False) -> Tensor:
        loss = F.cross_entropy(network(at), labels, reduction="sum")
        (found,) = torch.autograd.grad(loss, at, create_graph=differentiable)
        return found

    at = images.clone().requires_grad_()
    if name == "a gradient":
        return gradient(at)
    if name == "difference of two gradients":
        return gradient(at) - gradient((images - step).requires_grad_())
    if name == "double backward":
        (found,) = torch.autograd.grad((gradient(at, differentiable=True) * step).sum(), at)
        return found
    loss = torch.func.grad(lambda some: F.cross_entropy(network(some), labels, reduction="sum"))
    tangent = torch.func.jvp(loss, (images,), (step,))[1]
    assert isinstance(tangent, Tensor)
    return tangent
