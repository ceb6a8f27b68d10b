"""The number of gradients that an attack takes, counted without a model."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from pipeline.attack.batch import AdmixPool, GradientCounter
from pipeline.attack.cost import gradients_per_image
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.recipe import build

EPSILON = Fraction(8, 255)


@pytest.mark.parametrize(
    ("combination", "settings", "expected"),
    [
        ("noise", {}, 0),
        ("fgsm", {}, 1),
        ("mi", {"steps": 10}, 10),
        ("ni+di+ti", {"steps": 10, "target_class": 2}, 10),
        ("gnp+mi", {"steps": 10}, 20),
        ("gnp+mi+si", {"steps": 10}, 100),
        ("admix+mi", {"steps": 10}, 150),
        ("mi", {"steps": 1_000_000}, 1_000_000),
    ],
)
def test_gradients_are_counted_without_a_model(combination: str, settings: dict[str, int], expected: int) -> None:
    assert gradients_per_image(build(combination, epsilon=EPSILON, **settings)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("combination", ["gnp+mi", "vt+mi", "pgn+mi", "rap+i", "admix+di+pgd", "gnp+vt+mi+si"])
@pytest.mark.parametrize("form", ["literal", "central", "exact"])
def test_the_count_matches_the_gradients_taken(combination: str, form: str) -> None:
    parts = {"gnp": GradientNormPenalty(form=form)} if "gnp" in combination else {}  # type: ignore[arg-type]
    attack, counter = build(combination, epsilon=EPSILON, steps=4, parts=parts), GradientCounter()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(784, 5))
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    attack(network.requires_grad_(False), images, labels, ["a", "b"], pool=AdmixPool(images, labels), counter=counter)
    assert gradients_per_image(attack) == counter.gradients
