"""The benchmark of gradients: what it measures and reports, on a tiny network."""

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.runners import benchmark


def test_every_implementation_is_measured_and_ours_is_compared_with_the_goals() -> None:
    measured = benchmark.measure("test_resnet", torch.device("cpu"), batch=2, steps=1, rounds=1)
    names = {(rate["attack"], rate["name"]) for rate in measured["rates"]}
    assert {("MI-FGSM", "ours"), ("MI-FGSM", "plain loop"), ("look-ahead", "TransferAttack's loop")} <= names
    assert all(
        least <= middle <= most for middle, least, most in (rate["gradients_per_s"] for rate in measured["rates"])
    )
    assert all(rate["times"][0] == 1 for rate in measured["rates"] if rate["name"] == "ours")
    goals = benchmark.check_goals(measured, peak=1e9, device="cpu")
    assert len(goals) == 3
    assert goals[-1]["found"] > 0


def test_operations_per_gradient_are_counted() -> None:
    measured = benchmark.measure("test_resnet", torch.device("cpu"), batch=1, steps=1, rounds=1)
    # Forward, and back to the image through the same convolutions: twice, and nothing for weights.
    network = timm.create_model("test_resnet").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(1, 3, 224, 224))
    assert measured["flops_a_gradient"] == 2 * counter.get_total_flops()
