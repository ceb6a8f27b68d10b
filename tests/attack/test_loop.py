from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.attack.ball import BallNorm
from pipeline.data import codec
from tests.attack.networks import small_network
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
def test_an_attack_on_a_linear_model_ends_in_a_corner_of_the_ball(combination: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 4)
    images = torch.full((2, 3, 4, 4), 0.5)
    adversarial = attack(combination, steps=5)(Linear(weight), images, torch.tensor([0, 1]), ["a", "b"])
    corner = weight.sign() * 8 / 255
    torch.testing.assert_close(adversarial, torch.stack([0.5 - corner, 0.5 + corner]))


class Wavy(torch.nn.Module):
    """Logits whose gradient turns within a step or two, so that momentum and projection both matter."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        waves = (images * 97).sin() * (images * 13).cos()
        return torch.stack([waves[:, 0].sum(dim=(1, 2)), waves[:, 1].sum(dim=(1, 2)), waves[:, 2].sum(dim=(1, 2))], 1)


def mifgsm(decay: float, images: torch.Tensor, labels: torch.Tensor, *, clip: bool = True) -> torch.Tensor:
    """Algorithm 1 of MI-FGSM: 6 steps of 3/255 in a ball of 8/255."""
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
def test_momentum_and_projection_equal_the_papers(decay: float) -> None:
    torch.manual_seed(5)
    images, labels = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 2])
    adversarial = attack("mi", steps=6, decay=decay, step_size=Fraction(3, 255))(Wavy(), images, labels, ["a", "b"])
    torch.testing.assert_close(adversarial, mifgsm(decay, images, labels))
    other_decays = [mifgsm(other, images, labels) for other in {0.0, 0.7, 1.0} - {decay}]
    for other in (*other_decays, mifgsm(decay, images, labels, clip=False)):
        assert (adversarial - other).abs().max() > 1 / 255, "other settings give other images"


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["noise", "i", "pgd", "mi", "ni", "gnp+mi"]),
    st.sampled_from(["linf", "l2"]),
    st.fractions(Fraction(1, 255), Fraction(1, 4)),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
def test_a_stored_image_lies_exactly_within_epsilon(
    combination: str, norm: BallNorm, epsilon: Fraction, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    epsilon = epsilon if norm == "linf" else 8 * epsilon
    original = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    iterations = {} if combination == "noise" else {"steps": steps, "step_size": epsilon * 3 / 4}
    adversarial = attack(combination, epsilon=epsilon, norm=norm, **iterations)(
        small_network(), codec.to_float(original), torch.tensor([0, 1]), ["a", "b"]
    )
    stored = codec.quantise(adversarial, original, epsilon, norm)
    moved = stored.long() - original.long()
    if norm == "linf":
        assert Fraction(int(moved.abs().max()), 255) <= epsilon
        assert moved.any()
    else:
        assert all(Fraction(int((image**2).sum()), 255**2) <= epsilon**2 for image in moved)


def test_noise_uses_the_whole_budget_and_does_not_depend_on_the_batch() -> None:
    images, labels = torch.full((3, 3, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    noise = attack("noise")
    noisy = noise(small_network(), images, labels, ["a", "b", "c"])
    assert torch.equal(noisy[2:], noise(small_network(), images[2:], labels[2:], ["c"]))
    torch.testing.assert_close((noisy - images).abs(), torch.full_like(images, 8 / 255))


def test_a_rerun_is_bit_identical() -> None:
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    penalised = attack("gnp+mi", steps=5)
    first, second = (penalised(small_network(), images, labels, ["a", "b", "c"]) for _ in range(2))
    assert torch.equal(first, second)
