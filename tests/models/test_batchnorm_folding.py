"""Batch norms folded into convolutions: the same function, for every architecture."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from jobs.runners.curvature import first_images
from pipeline.data import codec
from pipeline.models import load
from pipeline.models.batchnorm_folding import folded
from pipeline.models.classifier import Classifier
from pipeline.models.load import ModelSpec
from pipeline.plan import recipe
from tests.bench.agreement import gradient
from tests.conftest import ROOT


def lived(network: nn.Module) -> nn.Module:
    """A network in float64 and in eval mode, whose batch norms have seen something."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 10
            module.running_var = 0.5 + 1.5 * torch.rand(module.num_features)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return network.eval().requires_grad_(False).double()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


# How many batch norms there are, and how many are left: those that a convolution does not come before.
FAMILIES = {
    "test_resnet": (15, 0),
    "resnet18": (20, 0),
    "tf_efficientnet_lite0": (49, 0),  # its norms activate as well, and some of its convolutions pad for themselves
    "mobilenetv2_100": (52, 0),
    "densenet121": (121, 62),
    "repvgg_a0": (61, 17),
    "skresnet18": (36, 0),
    "convnext_atto": (0, 0),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_any_architecture_computes_what_it_did(name: str) -> None:
    torch.manual_seed(0)
    network = lived(timm.create_model(name))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    made = folded(network, 64)
    assert (norms(network), norms(made)) == FAMILIES[name]
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    images, labels = torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.tensor([1, 2])
    torch.testing.assert_close(made(images), network(images), rtol=1e-9, atol=1e-9)
    here, there = gradient(network, images, labels), gradient(made, images, labels)
    assert float((here - there).norm() / here.norm()) < 1e-9


class _Odd(nn.Module):
    """Convolutions whose batch norms cannot be folded, but for the last."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.split, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3)."""
        seen = self.norms[1](self.twice(self.norms[0](self.twice(images))).relu())
        logits: Tensor = self.norms[3](self.last(seen)).mean(dim=(2, 3))
        return logits


def test_a_convolution_that_is_called_twice_keeps_its_norms() -> None:
    network = lived(_Odd())
    made = folded(network, 8)
    assert (norms(network), norms(made)) == (4, 3)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(made(images), network(images), rtol=1e-9, atol=1e-9)


class _Split(_Odd):
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3), of which a convolution's own output is a part."""
        seen = self.split(images)
        logits: Tensor = (self.norms[2](seen) + 2 * seen).mean(dim=(2, 3))
        return logits


def test_a_network_that_is_another_afterwards_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    network = lived(_Split())
    with caplog.at_level(logging.WARNING):
        assert folded(network, 8) is network
    assert caplog.messages == ["_Split: its batch norms do not fold"]


def test_real_gradients_are_as_right_as_they_were(demo_assets: Path) -> None:
    """From one point, in float32: what rounding does to kinks and to signs of what is nearly 0, and nothing else."""
    assert demo_assets.is_dir()
    job = recipe.load(ROOT / "jobs" / "recipes" / "demo.toml").job()
    (spec,) = (each for each in job.sources if isinstance(each, ModelSpec))
    images = first_images(job.data, 4)
    plain, exact = load.load(spec), load.load(spec).double()
    fast = Classifier(folded(plain.network, 224), plain.preprocessing)
    pixels = codec.to_float(images.pixels)
    before, after = gradient(plain, pixels, images.labels), gradient(fast, pixels, images.labels)
    truth = gradient(exact, pixels.double(), images.labels)
    assert float((before.sign() == after.sign()).double().mean()) > 0.999
    assert float((after - truth).norm()) < 3 * float((before - truth).norm())
