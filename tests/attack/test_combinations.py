"""What holds of every attack, over all pairs of what can be combined."""

import itertools
from fractions import Fraction
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from pipeline.attack.ball import BallNorm
from pipeline.attack.batch import Batch, Pool, Tally
from pipeline.attack.draws import Draws
from pipeline.attack.gradient import loss_gradient
from pipeline.attack.gradient_transforms import (
    Form,
    GradientNormPenalty,
    PenalisedNeighbours,
    ReversePerturbation,
    Transform,
    VarianceTuning,
)
from pipeline.attack.input_transforms import Admix, DiverseInput, Scale, View
from pipeline.attack.loop import Iterative
from pipeline.attack.losses import Loss, objective
from pipeline.attack.recipe import BASES, TRANSFORMS, VIEWS
from pipeline.data import codec
from tests.attack.test_published import network
from tests.samples import attack

KEYS = ["a", "b", "c"]
LABELS = torch.tensor([1, 0, 3])
PARTS = [*VIEWS, *TRANSFORMS]
# Cheap ones of those that sample.
CHEAP: dict[str, View | Transform] = {
    "si": Scale(copies=2),
    "admix": Admix(samples=2, scales=2),
    "vt": VarianceTuning(samples=2),
    "pgn": PenalisedNeighbours(samples=2),
    "rap": ReversePerturbation(steps=2, late_start=0),
}
COMBINATIONS = [
    *BASES,
    *(f"{part}+{base}" for base in BASES for part in PARTS),
    *(f"{one}+{other}+mi" for one, other in itertools.permutations(PARTS, 2)),
]


def composed(combination: str, **settings: Any) -> Iterative:
    own = {name: part for name, part in CHEAP.items() if name in combination.split("+")}
    made = attack(combination, **{"parts": own, **settings})
    assert isinstance(made, Iterative)
    return made


def originals() -> Tensor:
    torch.manual_seed(4)
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)


def run(made: Iterative, *, only: slice = slice(None), target_classes: Tensor | None = None) -> Tensor:
    images = originals().double() / 255
    pool = Pool(originals(), LABELS)
    wanted = None if target_classes is None else target_classes[only]
    return made(network(), images[only], LABELS[only], KEYS[only], target_classes=wanted, pool=pool)


def fits(combination: str, norm: BallNorm) -> bool:
    """Whether there is such an attack: neighbours are drawn from a cube."""
    return norm == "linf" or {"vt", "pgn"}.isdisjoint(combination.split("+"))


@pytest.mark.parametrize(
    ("combination", "norm"),
    [(each, norm) for each in COMBINATIONS for norm in get_args(BallNorm) if fits(each, norm)],
)
def test_it_stays_inside_the_ball_in_range_and_does_not_depend_on_its_batch(combination: str, norm: BallNorm) -> None:
    epsilon = Fraction(8, 255) if norm == "linf" else Fraction(1, 2)
    made = composed(combination, norm=norm, epsilon=epsilon)
    found = run(made)
    assert torch.equal(found, run(made)), "the same each time"
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    moved = codec.quantise(found.float(), originals(), epsilon, norm).long() - originals().long()
    assert moved.any()
    if norm == "linf":
        assert int(moved.abs().max()) <= 8
    else:
        assert int((moved**2).sum(dim=(1, 2, 3)).max()) <= codec.squared_levels(epsilon)
    torch.testing.assert_close(found[1:2], run(made, only=slice(1, 2)), atol=1e-7, rtol=0)


@pytest.mark.parametrize("combination", [each for each in COMBINATIONS if "gnp" not in each.split("+")])
def test_a_penalty_of_nothing_is_the_attack_without_it(combination: str) -> None:
    own = {name: part for name, part in CHEAP.items() if name in combination.split("+")}
    nothing = GradientNormPenalty(beta=0)
    for whole in (f"gnp+{combination}", f"{combination}+gnp"):
        made = attack(whole, parts={**own, "gnp": nothing})
        assert isinstance(made, Iterative)
        assert torch.equal(run(made), run(composed(combination)))


@pytest.mark.parametrize("loss", ["cross-entropy", "logit", "margin"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_targeted_attack_comes_nearer_to_what_it_wants(combination: str, loss: Loss) -> None:
    wanted = torch.tensor([2, 4, 1])
    made = composed(combination, loss=loss, target_class="shard")
    found = run(made, target_classes=wanted)

    def at_wanted(images: Tensor) -> Tensor:
        said = network()(images)
        if loss == "cross-entropy":
            said = said.log_softmax(dim=1)
        own: Tensor = said.gather(1, wanted.view(-1, 1)).squeeze(1)
        rest: Tensor = said.scatter(1, wanted.view(-1, 1), -torch.inf).amax(dim=1)
        return own - rest if loss == "margin" else own

    assert float(at_wanted(found).sum()) > float(at_wanted(originals().double() / 255).sum())


def test_wanted_classes_are_drawn_or_found_as_they_say() -> None:
    images, model = originals().double() / 255, network()
    given = torch.tensor([4, 4, 4])
    assert composed("mi").target_classes(model, images, LABELS, KEYS, given) is None
    assert composed("mi", target_class="shard").target_classes(model, images, LABELS, KEYS, given) is given
    fixed = composed("mi", target_class=2).target_classes(model, images, LABELS, KEYS)
    assert fixed is not None
    assert fixed.tolist() == [2, 2, 2]
    least = composed("mi", target_class="least-likely").target_classes(model, images, LABELS, KEYS)
    assert least is not None
    assert least.tolist() == model(images).argmin(dim=1).tolist()
    made = composed("mi", target_class="random")
    many = [f"{index}" for index in range(400)]
    labels = torch.arange(400) % 5
    drawn = made.target_classes(model, images[:1].expand(400, -1, -1, -1), labels, many)
    assert drawn is not None
    assert not (drawn == labels).any()
    assert sorted(set((drawn - labels).remainder(5).tolist())) == [1, 2, 3, 4]
    again = made.target_classes(model, images[:1], labels[7:8], many[7:8])
    assert again is not None
    assert again.tolist() == drawn[7:8].tolist()
    with pytest.raises(ValueError, match="target_class = 9, and there are 5"):
        composed("mi", target_class=9).target_classes(model, images, LABELS, KEYS)
    with pytest.raises(ValueError, match="no target classes"):
        composed("mi", target_class="shard").target_classes(model, images, LABELS, KEYS)


@pytest.mark.parametrize(
    ("combination", "settings", "gradients"),
    [
        ("i", {}, 3),
        ("gnp+mi", {}, 6),
        ("mi+admix", {"parts": {"admix": Admix(samples=2, scales=2)}}, 12),
        ("vt+mi", {"parts": {"vt": VarianceTuning(samples=4)}}, 3 + 2 * 4),
        ("vt+gnp+mi", {"parts": {"vt": VarianceTuning(samples=4)}}, 6 + 2 * 4),
        ("rap+mi", {"parts": {"rap": ReversePerturbation(steps=2, late_start=0.5)}}, 3 + 2),
        ("gnp+mi", {"parts": {"gnp": GradientNormPenalty(beta=0)}}, 3),
        ("gnp+mi", {"parts": {"gnp": GradientNormPenalty("exact")}}, 9),
    ],
)
def test_what_an_attack_costs_is_counted(combination: str, settings: dict[str, Any], gradients: int) -> None:
    tally = Tally()
    made = attack(combination, steps=3, **settings)
    made(network(), originals().double() / 255, LABELS, KEYS, tally=tally)
    assert tally.gradients == gradients


@pytest.mark.parametrize("inner", ["ti", "di", "vt", "pgn"])
@pytest.mark.parametrize("form", ["literal", "backward", "central"])
def test_around_whatever_the_penalty_is_the_derivative_of_it(inner: str, form: Form) -> None:
    """The difference over r approaches the exact product, also where it wraps what is random, or no gradient."""
    images, parts = originals().double() / 255, {**VIEWS, **TRANSFORMS}
    part: Any = CHEAP.get(inner) or (DiverseInput(probability=1) if inner == "di" else parts[inner]())
    views = [part] if inner in VIEWS else []
    transforms = [part] if inner in TRANSFORMS else []

    def penalty(form: Form, r: float) -> Tensor:
        draws = Draws(0, KEYS)
        batch = Batch(LABELS, draws, Pool(originals(), LABELS), 8 / 255, 2 / 255, 5)
        gradient = loss_gradient(network(), objective("cross-entropy", LABELS), views, batch)
        for transform in transforms:
            gradient = transform(gradient, batch)
        draws.begin(2)
        plain = gradient(images)
        draws.begin(3)
        gradient(images)  # a step with state, if there is any
        draws.begin(2)
        found = GradientNormPenalty(form, r=r, beta=1.0)(gradient, batch)(images)
        return (plain - found) / r

    exact, difference = penalty("exact", 1e-5), penalty(form, 1e-5)
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(1), difference.flatten(1))
    assert float(cosine.min()) > 0.99, cosine
