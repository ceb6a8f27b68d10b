"""The benchmark that needs torch and timm alone: what it counts and what it says, on a network that takes no time."""

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.commands import benchmark


def test_every_side_is_measured_and_ours_is_held_to_the_bars() -> None:
    found = benchmark.measured("test_resnet", torch.device("cpu"), batch=2, steps=1, rounds=1)
    names = {(rate["attack"], rate["name"]) for rate in found["rates"]}
    assert {("MI-FGSM", "ours"), ("MI-FGSM", "plain loop"), ("look-ahead", "TransferAttack's loop")} <= names
    assert all(least <= middle <= most for middle, least, most in (rate["gradients_per_s"] for rate in found["rates"]))
    assert all(rate["times"][0] == 1 for rate in found["rates"] if rate["name"] == "ours")
    held = benchmark.bars(found, reached=1e9, device="cpu")
    assert len(held) == 3
    assert held[-1]["found"] > 0


def test_what_a_gradient_takes_is_counted() -> None:
    found = benchmark.measured("test_resnet", torch.device("cpu"), batch=1, steps=1, rounds=1)
    # Forward, and back to the image through the same convolutions: twice, and nothing for weights.
    network = timm.create_model("test_resnet").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network(torch.rand(1, 3, 224, 224))
    assert found["flops_a_gradient"] == 2 * counted.get_total_flops()
