from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.attack.gradient import GradientFunction, loss_gradient
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty, PenaltyForm, PenaltyNorm
from pipeline.attack.losses import objective
from tests.attack.networks import small_network
from tests.samples import attack, batch

PENALTY_FORMS: tuple[PenaltyForm, ...] = ("literal", "backward", "central", "exact")


def quadratic(size: int = 12) -> tuple[GradientFunction, Tensor, Tensor]:
    """∇ of ½xᵀAx + bᵀx per image, its Hessian A, and a batch of two points."""
    torch.manual_seed(0)
    root = torch.randn(size, size, dtype=torch.float64)
    hessian, offset = root @ root.T, torch.randn(size, dtype=torch.float64)

    def gradient(images: Tensor) -> Tensor:
        return (images.flatten(1) @ hessian + offset).view_as(images)

    return gradient, hessian, torch.randn(2, 3, 2, 2, dtype=torch.float64)


def smooth(images: Tensor) -> Tensor:
    """∇ of Σ sin(x)·x²: smooth, and not quadratic."""
    return images.cos() * images**2 + 2 * images * images.sin()


def normalised(gradient: Tensor, norm: PenaltyNorm) -> Tensor:
    flat = gradient.flatten(1)
    norms = flat.norm(dim=1) if norm == "l2" else flat.abs().mean(dim=1)
    return gradient / norms.view(-1, 1, 1, 1)


@pytest.mark.parametrize("form", PENALTY_FORMS)
@pytest.mark.parametrize("norm", get_args(PenaltyNorm))
def test_every_form_equals_the_closed_form_on_a_quadratic(form: PenaltyForm, norm: PenaltyNorm) -> None:
    gradient, hessian, images = quadratic()
    penalty = GradientNormPenalty(form=form, norm=norm, r=0.3, beta=0.8)
    g = gradient(images)
    step = 0.3 * normalised(g, norm)
    closed = g - 0.8 * (step.flatten(1) @ hessian).view_as(g)
    torch.testing.assert_close(penalty(gradient, batch())(images), closed, atol=1e-6, rtol=0)


def test_look_ahead_rewards_the_norm_on_a_quadratic() -> None:
    gradient, hessian, images = quadratic()
    g = gradient(images)
    step = 0.01 * normalised(g, "mean-abs")
    closed = (1 + 2 * 0.8) * g + 0.8 * (step.flatten(1) @ hessian).view_as(g)
    penalised = GradientNormPenalty(form="look-ahead", norm="mean-abs")(gradient, batch())(images)
    torch.testing.assert_close(penalised, closed, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("form", "order"), [("literal", 2), ("backward", 2), ("central", 3)])
def test_the_error_of_a_difference_falls_at_its_order(form: PenaltyForm, order: int) -> None:
    torch.manual_seed(1)
    images = torch.randn(2, 3, 2, 2, dtype=torch.float64)

    def error(r: float) -> float:
        exact = GradientNormPenalty(form="exact", r=r)(smooth, batch())(images)
        return float((GradientNormPenalty(form=form, r=r)(smooth, batch())(images) - exact).abs().max())

    assert error(1e-2) / error(5e-3) == pytest.approx(2**order, rel=0.05)


def test_the_exact_form_is_the_gradient_of_the_penalised_loss() -> None:
    torch.manual_seed(2)
    images = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    beta, r = 0.8, 0.1
    norm = smooth(images).norm()
    (penalty,) = torch.autograd.grad(beta * r * norm, images)
    expected = smooth(images.detach()) - penalty
    penalised = GradientNormPenalty(form="exact", r=r, beta=beta)(smooth, batch())(images.detach())
    torch.testing.assert_close(penalised, expected)
    assert not penalised.requires_grad


@pytest.mark.parametrize("form", PENALTY_FORMS)
def test_a_penalty_may_wrap_a_penalty(form: PenaltyForm) -> None:
    gradient, _, images = quadratic()
    inner = GradientNormPenalty(form=form, beta=0.3)(gradient, batch())
    exact = GradientNormPenalty(form="exact", r=1e-6)(inner, batch())(images)
    literal = GradientNormPenalty(form="literal", r=1e-6)(inner, batch())(images)
    torch.testing.assert_close(exact, literal, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", get_args(PenaltyForm))
@pytest.mark.parametrize("norm", get_args(PenaltyNorm))
def test_an_attack_with_beta_zero_is_bit_identical_to_its_base(form: PenaltyForm, norm: PenaltyNorm) -> None:
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    penalty = GradientNormPenalty(form=form, norm=norm, beta=0.0)
    base, penalised = attack("mi", steps=4), attack("gnp+mi", steps=4, parts={"gnp": penalty})
    keys = ["a", "b", "c"]
    assert torch.equal(base(small_network(), images, labels, keys), penalised(small_network(), images, labels, keys))


@pytest.mark.parametrize("form", get_args(PenaltyForm))
def test_an_image_does_not_depend_on_its_batch(form: PenaltyForm) -> None:
    model = small_network().double()
    images, labels = torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    penalty = GradientNormPenalty(form=form, norm="mean-abs")

    def penalised(images: Tensor, labels: Tensor) -> Tensor:
        gradient = loss_gradient(model, objective("cross-entropy", labels), (), batch(labels))
        return penalty(gradient, batch(labels))(images)

    whole, single = penalised(images, labels), penalised(images[2:3], labels[2:3])
    torch.testing.assert_close(whole[2:3], single, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("norm", get_args(PenaltyNorm))
@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1.0, 1e30])
def test_the_step_does_not_depend_on_the_gradients_scale(norm: PenaltyNorm, scale: float) -> None:
    torch.manual_seed(4)
    gradient = torch.randn(2, 3, 8, 8)
    step = GradientNormPenalty(norm=norm, r=0.01)._step(gradient * scale)
    torch.testing.assert_close(step, 0.01 * normalised(gradient, norm))


def test_a_zero_gradient_stays_zero() -> None:
    for form in get_args(PenaltyForm):
        penalised = GradientNormPenalty(form=form)(lambda images: images * 0, batch())
        assert torch.equal(penalised(torch.zeros(1, 3, 2, 2)), torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize(
    "settings", [{"r": 0.0}, {"r": -1.0}, {"r": float("nan")}, {"beta": -0.1}, {"beta": float("inf")}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        GradientNormPenalty(**settings)  # type: ignore[arg-type]
