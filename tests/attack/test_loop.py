from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.attack.ball import BallNorm
from pipeline.data import codec
from tests.attack.test_gradient_transforms import network
from tests.samples import attack


class Linear(torch.nn.Module):
    """Two logits, w·x and 0: the gradient's sign is known in closed form."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = (images * self.weight).flatten(1).sum(dim=1)
        return torch.stack([score, torch.zeros_like(score)], dim=1)


@pytest.mark.parametrize("combination", ["i", "mi", "gnp+mi", "gnp+i"])
def test_on_a_linear_model_the_attack_walks_to_the_corner(combination: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 4)
    images = torch.full((2, 3, 4, 4), 0.5)
    found = attack(combination, steps=5)(Linear(weight), images, torch.tensor([0, 1]), ["a", "b"])
    corner = weight.sign() * 8 / 255
    torch.testing.assert_close(found, torch.stack([0.5 - corner, 0.5 + corner]))


class Wavy(torch.nn.Module):
    """Logits whose gradient turns within a step or two, so that momentum and projection both matter."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        waves = (images * 97).sin() * (images * 13).cos()
        return torch.stack([waves[:, 0].sum(dim=(1, 2)), waves[:, 1].sum(dim=(1, 2)), waves[:, 2].sum(dim=(1, 2))], 1)


def by_hand(decay: float, images: torch.Tensor, labels: torch.Tensor, *, clip: bool = True) -> torch.Tensor:
    """MI-FGSM as algorithm 1 has it: 6 steps of 3/255 in a ball of 8/255."""
    model, velocity, adversarial = Wavy(), torch.zeros_like(images), images
    for _ in range(6):
        inputs = adversarial.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inputs)
        velocity = decay * velocity + gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
        adversarial = adversarial + 3 / 255 * velocity.sign()
        if clip:
            adversarial = adversarial.clamp(images - 8 / 255, images + 8 / 255)
        adversarial = adversarial.clamp(0, 1)
    return adversarial


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_momentum_and_projection_are_the_papers(decay: float) -> None:
    torch.manual_seed(5)
    images, labels = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 2])
    made = attack("mi", steps=6, decay=decay, step_size=Fraction(3, 255))
    found = made(Wavy(), images, labels, ["a", "b"])
    torch.testing.assert_close(found, by_hand(decay, images, labels))
    others = [by_hand(other, images, labels) for other in {0.0, 0.7, 1.0} - {decay}]
    for other in (*others, by_hand(decay, images, labels, clip=False)):
        assert (found - other).abs().max() > 1 / 255, "the case tells settings apart"


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["noise", "i", "pgd", "mi", "ni", "gnp+mi"]),
    st.sampled_from(["linf", "l2"]),
    st.fractions(Fraction(1, 255), Fraction(1, 4)),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
def test_as_stored_an_image_lies_within_epsilon_exactly(
    combination: str, norm: BallNorm, epsilon: Fraction, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    epsilon = epsilon if norm == "linf" else 8 * epsilon
    original = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    more = {} if combination == "noise" else {"steps": steps, "step_size": epsilon * 3 / 4}
    made = attack(combination, epsilon=epsilon, norm=norm, **more)
    found = made(network(), codec.to_float(original), torch.tensor([0, 1]), ["a", "b"])
    stored = codec.quantise(found, original, epsilon, norm)
    moved = stored.long() - original.long()
    if norm == "linf":
        assert Fraction(int(moved.abs().max()), 255) <= epsilon
        assert moved.any()
    else:
        assert all(Fraction(int((each**2).sum()), 255**2) <= epsilon**2 for each in moved)


def test_noise_uses_the_whole_budget_whatever_the_batch() -> None:
    images, labels = torch.full((3, 3, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    noise = attack("noise")
    together = noise(network(), images, labels, ["a", "b", "c"])
    assert torch.equal(together[2:], noise(network(), images[2:], labels[2:], ["c"]))
    torch.testing.assert_close((together - images).abs(), torch.full_like(images, 8 / 255))


def test_a_rerun_is_bit_identical() -> None:
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    made = attack("gnp+mi", steps=5)
    first, second = (made(network(), images, labels, ["a", "b", "c"]) for _ in range(2))
    assert torch.equal(first, second)
