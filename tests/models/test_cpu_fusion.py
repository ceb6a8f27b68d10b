"""Convolutions fused with what stands around them: the same function and the same derivatives, for any of them."""

import copy
import logging
from collections import Counter

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.autograd import grad

from pipeline.models.batchnorm_folding import folded
from pipeline.models.cpu_fusion import Fused, fused
from tests.bench.agreement import gradient
from tests.models.test_batchnorm_folding import lived

# Kernel, stride, padding (`None`: as TensorFlow pads), dilation, groups, channels in and out, rows and columns.
CONVOLUTIONS = {
    "1x1": (1, 1, 0, 1, 1, 8, 16, 9, 7),
    "3x3": (3, 1, 1, 1, 1, 8, 16, 9, 7),
    "3x3-unpadded": (3, 1, 0, 1, 1, 8, 16, 9, 7),
    "3x3-dilated": (3, 1, 2, 2, 1, 8, 16, 9, 7),
    "5x5-wide": (5, 1, 4, 1, 1, 8, 16, 9, 7),
    "1x1-padded": (1, 1, 1, 1, 1, 8, 16, 9, 7),
    "1x1-strided": (1, 2, 0, 1, 1, 8, 16, 9, 8),
    "3x3-strided": (3, 2, 1, 1, 1, 8, 16, 10, 7),
    "3x3-grouped": (3, 1, 1, 1, 4, 8, 16, 9, 7),
    "3x3-grouped-strided": (3, 2, 1, 1, 4, 8, 16, 9, 8),
    "depthwise": (5, 1, 2, 1, 8, 8, 8, 9, 7),
    "depthwise-strided": (3, 2, 1, 1, 8, 8, 8, 9, 8),
    "stem": (7, 2, 3, 1, 1, 3, 16, 20, 17),
    "stem-3x3": (3, 2, 1, 1, 1, 3, 16, 19, 18),
    "stem-3x3-thrice": (3, 3, 1, 1, 1, 3, 16, 19, 18),
    "stem-unstrided": (3, 1, 1, 1, 1, 3, 16, 19, 18),
    "patches": (4, 4, 0, 1, 1, 3, 16, 18, 16),
    "one-channel": (3, 2, 1, 1, 1, 1, 4, 9, 8),
    "same": (3, 2, None, 1, 1, 8, 16, 10, 10),
    "same-odd": (3, 2, None, 1, 1, 8, 16, 9, 7),
    "same-mixed": (5, 2, None, 1, 8, 8, 8, 9, 10),
    "same-stem": (3, 2, None, 1, 1, 3, 16, 18, 17),
    "same-unstrided": (4, 1, None, 1, 1, 8, 16, 9, 8),
}


def convolution(name: str) -> tuple[nn.Conv2d, Tensor]:
    """In float64, and images for it."""
    kernel, stride, padding, dilation, groups, channels, made, rows, columns = CONVOLUTIONS[name]
    torch.manual_seed(0)
    kind, pads = (Conv2dSame, 0) if padding is None else (nn.Conv2d, padding)
    plain = kind(channels, made, kernel, stride, pads, dilation, groups).double().requires_grad_(False)
    return plain, torch.randn(2, channels, rows, columns, dtype=torch.float64)


def derivatives(network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """The answer, a gradient of it, a Hessian-vector product and that one's gradient: all by the input."""
    generator = torch.Generator().manual_seed(1)
    inputs = images.detach().requires_grad_()
    answer = network(inputs)
    weights = torch.randn(answer.shape, dtype=torch.float64, generator=generator).to(images.dtype)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=generator).to(images.dtype)
    # Cubed, for a convolution with ReLU is linear in pieces, and its second derivative would be 0.
    (first,) = grad((weights * answer**3).sum(), inputs, create_graph=True)
    (second,) = grad((first * direction).sum(), inputs, create_graph=True)
    (third,) = grad((second * direction).sum(), inputs)
    return answer.detach(), first.detach(), second.detach(), third


@pytest.mark.parametrize("activation", [None, nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_it_is_the_same_map_with_the_same_derivatives(name: str, activation: type[nn.ReLU | nn.ReLU6] | None) -> None:
    plain, images = convolution(name)
    expected = derivatives(nn.Sequential(plain, activation() if activation else nn.Identity()), 3 * images)
    ceiling = {nn.ReLU: float("inf"), nn.ReLU6: 6.0}[activation] if activation else None
    found = derivatives(Fused(copy.deepcopy(plain).float(), ceiling), 3 * images.float())
    for there, here in zip(expected, found, strict=True):
        assert here.shape == there.shape
        assert float((here.double() - there).norm()) <= 1e-5 * float(there.norm())


def test_its_sizes_may_change_from_call_to_call() -> None:
    plain, _ = convolution("same")
    made = Fused(copy.deepcopy(plain).float(), None)
    for rows, columns in ((9, 10), (10, 10), (9, 9), (9, 10)):
        images = torch.randn(1, 8, rows, columns)
        torch.testing.assert_close(made(images).double(), plain(images.double()), rtol=1e-5, atol=1e-5)


def test_it_may_become_another_type_after_use() -> None:
    plain, images = convolution("3x3")
    made = Fused(copy.deepcopy(plain).float(), float("inf"))
    made(images.float())
    torch.testing.assert_close(made.double()(images), plain(images).relu())


@pytest.mark.parametrize("has_routines", [True, False])
@pytest.mark.parametrize("name", ["3x3", "1x1-strided", "stem", "same"])
def test_autocast_has_it_computed_in_bfloat16(name: str, has_routines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_routines:  # as on a CPU without AVX-512; with it, both ways run
        monkeypatch.setattr("pipeline.models.cpu_fusion.has_routines", lambda _: False)
    plain, images = convolution(name)
    made = Fused(copy.deepcopy(plain).float(), float("inf"))
    inputs = images.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        answer = made(inputs)
    assert answer.dtype == torch.bfloat16
    (found,) = grad(answer.float().sum(), inputs)
    exact = images.requires_grad_()
    expected = plain(exact).relu()
    (truth,) = grad(expected.sum(), exact)
    assert float((answer.double() - expected).detach().norm() / expected.detach().norm()) < 0.01
    # A kink that turns changes a gradient by much.
    assert found.dtype == torch.float32
    assert float((found.double() - truth).norm() / truth.norm()) < 0.1
    assert made(images.float()).dtype == torch.float32, "and only for as long as it is on"


# How many convolutions there are, all fused, and how many ReLUs are left: those that take no convolution's answer.
FAMILIES = {
    "test_resnet": (15, 4),
    "resnet18": (20, 8),
    "tf_efficientnet_lite0": (49, 0),
    "mobilenetv2_100": (52, 0),
    "resnext26ts": (31, 0),
    "convnext_atto": (40, 0),
    "test_vit": (1, 0),
}


def kinds(network: nn.Module) -> Counter[type[nn.Module]]:
    return Counter(type(module) for module in network.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_any_architecture_computes_what_it_did(name: str) -> None:
    torch.manual_seed(0)
    exact = lived(timm.create_model(name))
    side = 160 if name == "test_vit" else 64
    plain = folded(copy.deepcopy(exact).float(), side)
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    made = fused(plain, side)
    found = kinds(made)
    assert (found[Fused], found[nn.ReLU] + found[nn.ReLU6]) == FAMILIES[name]
    assert found[nn.Conv2d] + found[Conv2dSame] == 0
    assert all(torch.equal(before[key], tensor) for key, tensor in plain.state_dict().items())
    images, labels = torch.rand(2, 3, side, side, dtype=torch.float64), torch.tensor([1, 2])
    truth = gradient(exact, images, labels)
    errors = [float((gradient(each, images.float(), labels) - truth).norm() / truth.norm()) for each in (plain, made)]
    assert errors[1] < max(3 * errors[0], 1e-4)


class _Shared(nn.Module):
    """A ReLU's input that is wanted elsewhere as well, a ReLU that is called twice, and one after an addition."""

    def __init__(self, *, twice_taken: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.relu, self.own, self.last = nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True)
        self.twice_taken = twice_taken

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3)."""
        seen = self.first(images)
        kept = self.own(seen) - (seen if self.twice_taken else 0)
        kept = self.relu(self.second(self.relu(kept)))
        summed = self.third(kept)
        summed += kept
        logits: Tensor = self.last(summed).mean(dim=(2, 3))
        return logits


def test_only_a_relu_that_takes_what_one_convolution_gave_is_fused() -> None:
    torch.manual_seed(0)
    network = _Shared(twice_taken=False).eval().requires_grad_(False)
    made = fused(network, 8)
    assert [each.ceiling for each in made.modules() if isinstance(each, Fused)] == [float("inf"), None, None]
    assert kinds(made)[nn.ReLU] == 2
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(made(images), network(images))


def test_a_network_that_is_another_afterwards_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    network = _Shared(twice_taken=True).eval().requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        assert fused(network, 8) is network
    assert caplog.messages == ["_Shared: its convolutions do not fuse"]


class _Changing(nn.Module):
    """One that changes what its ReLU gave, which saves it for the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU6()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3)."""
        made = self.act(self.first(images))
        made += images
        logits: Tensor = made.mean(dim=(2, 3))
        return logits


class _Asking(_Changing):
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3)."""
        assert self.first.kernel_size == (3, 3)
        logits: Tensor = self.first(images).mean(dim=(2, 3))
        return logits


@pytest.mark.parametrize("kind", [_Changing, _Asking])
def test_a_network_that_would_fail_stays_as_it_is(kind: type[nn.Module]) -> None:
    network = kind().eval().requires_grad_(False)
    assert fused(network, 8) is network


def test_padding_that_a_dilated_kernel_takes_unevenly_is_left_to_torch() -> None:
    network = nn.Sequential(Conv2dSame(3, 4, 3, 2, dilation=2), nn.Flatten()).eval().requires_grad_(False)
    assert fused(network, 15) is network


def test_what_was_first_used_without_gradients_can_be_differentiated() -> None:
    plain, images = convolution("same")
    made = Fused(plain, None)  # float64: by torch's own operations
    with torch.inference_mode():
        made(images)
    inputs = images.requires_grad_()
    grad(made(inputs).sum(), inputs)


def test_what_gives_no_numbers_stays_as_it_is() -> None:
    convolution = nn.Conv2d(3, 3, 3)
    nn.init.constant_(convolution.weight, float("nan"))
    network = nn.Sequential(convolution, nn.ReLU(), nn.Flatten()).eval().requires_grad_(False)
    assert fused(network, 8) is network
