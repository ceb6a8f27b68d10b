"""Fused convolutions have the same outputs and derivatives, for every kind of convolution and architecture."""

import copy
import logging
import pickle
from collections import Counter

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.autograd import grad

from pipeline.models.batchnorm_folding import fold_batchnorms
from pipeline.models.cpu_fusion import FusedConvolution, fuse_convolutions
from tests.bench.agreement import gradient
from tests.models.test_batchnorm_folding import with_batchnorm_statistics

# Kernel, stride, padding (`None`: TensorFlow's "same"), dilation, groups, channels in and out, rows and columns.
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
    """A convolution in float64, and images for it."""
    kernel, stride, padding, dilation, groups, channels, channels_out, rows, columns = CONVOLUTIONS[name]
    torch.manual_seed(0)
    kind, pads = (Conv2dSame, 0) if padding is None else (nn.Conv2d, padding)
    plain = kind(channels, channels_out, kernel, stride, pads, dilation, groups).double().requires_grad_(False)
    return plain, torch.randn(2, channels, rows, columns, dtype=torch.float64)


def derivatives(network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """The output, its gradient, a Hessian-vector product and the gradient of that product, all by the input."""
    generator = torch.Generator().manual_seed(1)
    inputs = images.detach().requires_grad_()
    output = network(inputs)
    weights = torch.randn(output.shape, dtype=torch.float64, generator=generator).to(images.dtype)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=generator).to(images.dtype)
    # Cubed, as a convolution with ReLU is piecewise linear, and its second derivative would be 0.
    (first,) = grad((weights * output**3).sum(), inputs, create_graph=True)
    (second,) = grad((first * direction).sum(), inputs, create_graph=True)
    (third,) = grad((second * direction).sum(), inputs)
    return output.detach(), first.detach(), second.detach(), third


@pytest.mark.parametrize("activation", [None, nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_outputs_and_derivatives_are_the_same(name: str, activation: type[nn.ReLU | nn.ReLU6] | None) -> None:
    plain, images = convolution(name)
    expected = derivatives(nn.Sequential(plain, activation() if activation else nn.Identity()), 3 * images)
    ceiling = {nn.ReLU: float("inf"), nn.ReLU6: 6.0}[activation] if activation else None
    found = derivatives(FusedConvolution(copy.deepcopy(plain).float(), ceiling), 3 * images.float())
    for exact, single in zip(expected, found, strict=True):
        assert single.shape == exact.shape
        assert float((single.double() - exact).norm()) <= 1e-5 * float(exact.norm())


def test_shapes_may_change_between_calls() -> None:
    plain, _ = convolution("same")
    fused = FusedConvolution(copy.deepcopy(plain).float(), None)
    for count, rows, columns in ((1, 9, 10), (1, 10, 10), (3, 9, 9), (1, 9, 9), (1, 9, 10), (0, 9, 10)):
        images = torch.randn(count, 8, rows, columns)
        torch.testing.assert_close(fused(images).double(), plain(images.double()), rtol=1e-5, atol=1e-5)


def test_the_type_may_change_after_a_call() -> None:
    plain, images = convolution("3x3")
    fused = FusedConvolution(copy.deepcopy(plain).float(), float("inf"))
    fused(images.float())
    torch.testing.assert_close(fused.double()(images), plain(images).relu())


def test_a_called_convolution_can_be_copied_and_pickled() -> None:
    plain, images = convolution("stem")
    fused = FusedConvolution(plain.float(), float("inf"))
    inputs = images.float().requires_grad_()
    grad(fused(inputs).sum(), inputs)  # also orders the weights of the adjoint
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(other(inputs), fused(inputs))


@pytest.mark.parametrize("has_routines", [True, False])
@pytest.mark.parametrize("name", ["3x3", "1x1-strided", "stem", "same"])
def test_autocast_computes_in_bfloat16(name: str, has_routines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_routines:  # as on a CPU without AVX-512
        monkeypatch.setattr("pipeline.models.cpu_fusion.has_onednn_routines", lambda _: False)
    plain, images = convolution(name)
    fused = FusedConvolution(copy.deepcopy(plain).float(), float("inf"))
    inputs = images.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = fused(inputs)
    assert output.dtype == torch.bfloat16
    (found,) = grad(output.float().sum(), inputs)
    exact = images.requires_grad_()
    expected = plain(exact).relu()
    (truth,) = grad(expected.sum(), exact)
    assert float((output.double() - expected).detach().norm() / expected.detach().norm()) < 0.01
    # The gradient changes by much where rounding crosses a kink.
    assert found.dtype == torch.float32
    assert float((found.double() - truth).norm() / truth.norm()) < 0.1
    assert fused(images.float()).dtype == torch.float32, "only while autocast is on"


# Number of convolutions, all fused, and of ReLUs that remain: those whose input is not a convolution's output.
FAMILIES = {
    "test_resnet": (15, 4),
    "resnet18": (20, 8),
    "tf_efficientnet_lite0": (49, 0),
    "mobilenetv2_100": (52, 0),
    "resnext26ts": (31, 0),
    "convnext_atto": (40, 0),
    "test_vit": (1, 0),
}


def count_types(network: nn.Module) -> Counter[type[nn.Module]]:
    return Counter(type(module) for module in network.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_fusing_keeps_gradients_of_any_architecture(name: str) -> None:
    torch.manual_seed(0)
    exact = with_batchnorm_statistics(timm.create_model(name))
    side = 160 if name == "test_vit" else 64
    plain = fold_batchnorms(copy.deepcopy(exact).float(), side)
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    fused = fuse_convolutions(plain, side)
    found = count_types(fused)
    assert (found[FusedConvolution], found[nn.ReLU] + found[nn.ReLU6]) == FAMILIES[name]
    assert found[nn.Conv2d] + found[Conv2dSame] == 0
    assert all(torch.equal(before[key], tensor) for key, tensor in plain.state_dict().items())
    images, labels = torch.rand(2, 3, side, side, dtype=torch.float64), torch.tensor([1, 2])
    truth = gradient(exact, images, labels)
    errors = [
        float((gradient(network, images.float(), labels) - truth).norm() / truth.norm()) for network in (plain, fused)
    ]
    assert errors[1] < max(3 * errors[0], 1e-4)


class _SharedActivations(nn.Module):
    """ReLUs that cannot be fused: one whose input has other uses, one called twice, and one after an addition."""

    def __init__(self, *, input_is_reused: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.first_relu, self.shared_relu, self.last_relu = nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True)
        self.input_is_reused = input_is_reused

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3)."""
        features = self.first(images)
        features = self.first_relu(features) - (features if self.input_is_reused else 0)
        features = self.shared_relu(self.second(self.shared_relu(features)))
        summed = self.third(features)
        summed += features
        logits: Tensor = self.last_relu(summed).mean(dim=(2, 3))
        return logits


def test_only_a_relu_of_one_convolutions_output_is_fused() -> None:
    torch.manual_seed(0)
    network = _SharedActivations(input_is_reused=False).eval().requires_grad_(False)
    fused = fuse_convolutions(network, 8)
    assert [module.ceiling for module in fused.modules() if isinstance(module, FusedConvolution)] == [
        float("inf"),
        None,
        None,
    ]
    assert count_types(fused)[nn.ReLU] == 2
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fused(images), network(images))


def test_a_network_that_fusing_would_change_is_returned_itself(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    network = _SharedActivations(input_is_reused=True).eval().requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        assert fuse_convolutions(network, 8) is network
    assert caplog.messages == ["_SharedActivations: its convolutions cannot be fused"]


class _EditsInPlace(nn.Module):
    """Edits its ReLU's output in place, which the ReLU saves for the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU6()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3)."""
        features = self.act(self.first(images))
        features += images
        logits: Tensor = features.mean(dim=(2, 3))
        return logits


class _ReadsAttributes(_EditsInPlace):
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3)."""
        assert self.first.kernel_size == (3, 3)
        logits: Tensor = self.first(images).mean(dim=(2, 3))
        return logits


@pytest.mark.parametrize("kind", [_EditsInPlace, _ReadsAttributes])
def test_a_network_that_would_fail_when_fused_is_returned_itself(kind: type[nn.Module]) -> None:
    network = kind().eval().requires_grad_(False)
    assert fuse_convolutions(network, 8) is network


def test_same_padding_with_dilation_is_left_to_torch() -> None:
    network = nn.Sequential(Conv2dSame(3, 4, 3, 2, dilation=2), nn.Flatten()).eval().requires_grad_(False)
    assert fuse_convolutions(network, 15) is network


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # computed by oneDNN, and by torch
def test_a_convolution_first_called_in_inference_mode_can_be_differentiated(dtype: torch.dtype) -> None:
    plain, images = convolution("same")
    fused, images = FusedConvolution(plain.to(dtype), None), images.to(dtype)
    with torch.inference_mode():
        fused(images)
    inputs = images.requires_grad_()
    grad(fused(inputs).sum(), inputs)


def test_a_network_that_outputs_nan_is_returned_itself() -> None:
    convolution = nn.Conv2d(3, 3, 3)
    nn.init.constant_(convolution.weight, float("nan"))
    network = nn.Sequential(convolution, nn.ReLU(), nn.Flatten()).eval().requires_grad_(False)
    assert fuse_convolutions(network, 8) is network
