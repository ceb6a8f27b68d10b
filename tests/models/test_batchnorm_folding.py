"""Folded batch norms leave the function unchanged, for every architecture."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from jobs.runners.curvature import first_images
from pipeline.data import codec
from pipeline.models.batchnorm_folding import fold_batchnorms
from pipeline.models.classifier import Classifier
from pipeline.models.load import load_model
from pipeline.models.spec import ModelSpec
from pipeline.plan.recipe_reader import load_recipe
from tests.bench.agreement import gradient
from tests.conftest import ROOT


def with_batchnorm_statistics(network: nn.Module) -> nn.Module:
    """A network in float64 and in eval mode, whose batch norms have random statistics and parameters."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 10
            module.running_var = 0.5 + 1.5 * torch.rand(module.num_features)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return network.eval().requires_grad_(False).double()


def count_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


# Number of batch norms before and after folding: those remain that do not follow a convolution.
FAMILIES = {
    "test_resnet": (15, 0),
    "resnet18": (20, 0),
    "tf_efficientnet_lite0": (49, 0),  # its norms activate as well, and some of its convolutions pad themselves
    "mobilenetv2_100": (52, 0),
    "densenet121": (121, 62),
    "repvgg_a0": (61, 17),
    "skresnet18": (36, 0),
    "convnext_atto": (0, 0),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_keeps_outputs_and_gradients_of_any_architecture(name: str) -> None:
    torch.manual_seed(0)
    network = with_batchnorm_statistics(timm.create_model(name))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    folded = fold_batchnorms(network, 64)
    assert (count_norms(network), count_norms(folded)) == FAMILIES[name]
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    images, labels = torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.tensor([1, 2])
    torch.testing.assert_close(folded(images), network(images), rtol=1e-9, atol=1e-9)
    expected, found = gradient(network, images, labels), gradient(folded, images, labels)
    assert float((expected - found).norm() / expected.norm()) < 1e-9


class _ReusedConvolution(nn.Module):
    """Batch norms that cannot be folded, except the last."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.split, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3)."""
        features = self.norms[1](self.twice(self.norms[0](self.twice(images))).relu())
        logits: Tensor = self.norms[3](self.last(features)).mean(dim=(2, 3))
        return logits


def test_a_convolution_that_is_called_twice_keeps_its_batch_norms() -> None:
    network = with_batchnorm_statistics(_ReusedConvolution())
    folded = fold_batchnorms(network, 8)
    assert (count_norms(network), count_norms(folded)) == (4, 3)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(images), network(images), rtol=1e-9, atol=1e-9)


class _UnfoldedOutput(_ReusedConvolution):
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3), which use a convolution's output before its batch norm, too."""
        features = self.split(images)
        logits: Tensor = (self.norms[2](features) + 2 * features).mean(dim=(2, 3))
        return logits


def test_a_network_that_folding_would_change_is_returned_itself(caplog: pytest.LogCaptureFixture) -> None:
    network = with_batchnorm_statistics(_UnfoldedOutput())
    with caplog.at_level(logging.WARNING):
        assert fold_batchnorms(network, 8) is network
    assert caplog.messages == ["_UnfoldedOutput: its batch norms cannot be folded"]


def test_folding_does_not_make_real_gradients_less_exact(demo_assets: Path) -> None:
    """At the same images, in float32: only rounding differs, at kinks and where gradients are nearly 0."""
    assert demo_assets.is_dir()
    job = load_recipe(ROOT / "jobs" / "recipes" / "demo.toml").job()
    (spec,) = (source for source in job.sources if isinstance(source, ModelSpec))
    images = first_images(job.data, 4)
    plain, exact = load_model(spec), load_model(spec).double()
    fast = Classifier(fold_batchnorms(plain.network, 224), plain.preprocessing)
    pixels = codec.to_float(images.pixels)
    before, after = gradient(plain, pixels, images.labels), gradient(fast, pixels, images.labels)
    truth = gradient(exact, pixels.double(), images.labels)
    assert float((before.sign() == after.sign()).double().mean()) > 0.999
    assert float((after - truth).norm()) < 3 * float((before - truth).norm())
