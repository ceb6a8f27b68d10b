"""What networks become on GPUs, tried on the CPU: the same outputs and gradients, fewer copies."""

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models.gpu_networks import RepeatableMaxPool, for_gpu, fuse_by_cudnn, in_bfloat16

POOLS = {
    "3x3, stride 2, padding 1": nn.MaxPool2d(3, 2, 1),
    "2x2": nn.MaxPool2d(2),
    "3x2, strides 2 and 1, padding 1 and 0": nn.MaxPool2d((3, 2), (2, 1), (1, 0)),
}


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def image_gradient(network: nn.Module, images: Tensor) -> Tensor:
    inputs = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(inputs).square().sum(), inputs)
    return gradient


@pytest.mark.parametrize("pool", POOLS)
def test_max_pooling_is_torchs_with_its_gradient(pool: str) -> None:
    images = torch.randn(2, 4, 17, 18, generator=torch.Generator().manual_seed(0))
    images = images.to(memory_format=torch.channels_last)
    ours = RepeatableMaxPool(POOLS[pool])
    assert torch.equal(ours(images), POOLS[pool](images))
    assert torch.allclose(image_gradient(ours, images), image_gradient(POOLS[pool], images))
    assert ours(images).is_contiguous(memory_format=torch.channels_last)


def test_the_gradient_of_equal_values_goes_to_the_first_row_and_column() -> None:
    gradient = image_gradient(RepeatableMaxPool(nn.MaxPool2d(2)), torch.ones(1, 1, 2, 2))
    assert gradient.flatten().tolist() == [2, 0, 0, 0]


def test_relu6_is_not_cloned_and_the_network_computes_the_same() -> None:
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0").eval().requires_grad_(False)
    images = torch.rand(1, 3, 64, 64)
    with Operations() as before:
        expected = image_gradient(network, images)
    adapted = for_gpu(network)
    with Operations() as after:
        found = image_gradient(adapted, images)
    assert torch.equal(found, expected)
    assert before.counts["aten::clone"] - after.counts["aten::clone"] == 33
    assert any(module.inplace for module in network.modules() if isinstance(module, nn.ReLU6)), "a copy is changed"


def test_a_pooling_that_cannot_be_replaced_stays() -> None:
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    adapted = for_gpu(nn.Sequential(pool, nn.MaxPool2d(2)))
    assert [type(module) for module in adapted.children()] == [nn.MaxPool2d, RepeatableMaxPool]


def test_a_network_of_mixed_dtypes_is_not_held_in_bfloat16() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 2)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.last(images.float().mean(dim=(2, 3)))
            return logits

    inputs = torch.rand(2, 3, 4, 4).bfloat16()
    assert in_bfloat16(Mixed(), inputs) is None
    assert in_bfloat16(nn.Conv2d(3, 2, 1), inputs) is not None


def test_convolutions_with_their_relus_by_cudnns_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for cuDNN's operation, which has no CPU version: what is around it is what is tested."""

    def stand_in(images: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        return F.conv2d(images, weight, bias, *settings).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", stand_in)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.SiLU(), nn.Conv2d(4, 2, 1)
    ).requires_grad_(False)
    images = torch.randn(2, 3, 16, 16)
    fused = fuse_by_cudnn(network, images)
    assert [type(module).__name__ for module in fused.children()][:2] == ["CudnnConvolutionRelu", "Identity"]
    assert torch.allclose(fused(images), network(images))
    assert torch.allclose(image_gradient(fused, images), image_gradient(network, images), atol=1e-6)
