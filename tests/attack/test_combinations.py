"""Properties of every attack, over all pairs of the parts that can be combined."""

import itertools
from fractions import Fraction
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from jobs.gpu_check import variants
from jobs.gpu_check.variants import PARTS
from pipeline.attack.ball import BallNorm
from pipeline.attack.batch import AdmixPool, Batch, GradientCounter
from pipeline.attack.draws import Draws
from pipeline.attack.gradient import loss_gradient
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty, PenaltyForm
from pipeline.attack.gradient_transforms import ReversePerturbation, VarianceTuning
from pipeline.attack.input_transforms import Admix, DiverseInput
from pipeline.attack.loop import Iterative
from pipeline.attack.losses import Loss, objective
from pipeline.attack.recipe import BASES, GRADIENT_TRANSFORMS, INPUT_TRANSFORMS
from pipeline.data import codec
from tests.attack.networks import steep_network
from tests.samples import attack

KEYS = ["a", "b", "c"]
LABELS = torch.tensor([1, 0, 3])
COMBINATIONS = [
    *BASES,
    *(f"{part}+{base}" for base in BASES for part in PARTS),
    *(f"{first}+{second}+mi" for first, second in itertools.permutations(PARTS, 2)),
]


def cheap_attack(combination: str, **settings: Any) -> Iterative:
    iterative = variants.cheap_attack(combination, **settings)
    assert isinstance(iterative, Iterative)
    return iterative


def originals() -> Tensor:
    torch.manual_seed(4)
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)


def attacked(iterative: Iterative, *, only: slice = slice(None), target_classes: Tensor | None = None) -> Tensor:
    images = originals().double() / 255
    pool = AdmixPool(originals(), LABELS)
    targets = None if target_classes is None else target_classes[only]
    return iterative(steep_network(), images[only], LABELS[only], KEYS[only], target_classes=targets, pool=pool)


def is_possible(combination: str, norm: BallNorm) -> bool:
    """Whether the attack exists in this norm: `vt` and `pgn` draw neighbours from a cube."""
    return norm == "linf" or {"vt", "pgn"}.isdisjoint(combination.split("+"))


@pytest.mark.parametrize(
    ("combination", "norm"),
    [
        (combination, norm)
        for combination in COMBINATIONS
        for norm in get_args(BallNorm)
        if is_possible(combination, norm)
    ],
)
def test_images_stay_in_the_ball_and_do_not_depend_on_the_batch(combination: str, norm: BallNorm) -> None:
    epsilon = Fraction(8, 255) if norm == "linf" else Fraction(1, 2)
    iterative = cheap_attack(combination, norm=norm, epsilon=epsilon)
    adversarial = attacked(iterative)
    assert torch.equal(adversarial, attacked(iterative)), "reproducible"
    assert float(adversarial.min()) >= 0
    assert float(adversarial.max()) <= 1
    moved = codec.quantise(adversarial.float(), originals(), epsilon, norm).long() - originals().long()
    assert moved.any()
    if norm == "linf":
        assert int(moved.abs().max()) <= 8
    else:
        assert int((moved**2).sum(dim=(1, 2, 3)).max()) <= codec.squared_levels(epsilon)
    torch.testing.assert_close(adversarial[1:2], attacked(iterative, only=slice(1, 2)), atol=1e-7, rtol=0)


@pytest.mark.parametrize("combination", [name for name in COMBINATIONS if "gnp" not in name.split("+")])
def test_a_penalty_with_beta_zero_changes_nothing(combination: str) -> None:
    parts = {**variants.cheap_parts(combination), "gnp": GradientNormPenalty(beta=0)}
    for penalised in (f"gnp+{combination}", f"{combination}+gnp"):
        assert torch.equal(attacked(cheap_attack(penalised, parts=parts)), attacked(cheap_attack(combination)))


@pytest.mark.parametrize("loss", ["cross-entropy", "logit", "margin"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_targeted_attack_raises_the_objective_of_its_target_classes(combination: str, loss: Loss) -> None:
    target_classes = torch.tensor([2, 4, 1])
    iterative = cheap_attack(combination, loss=loss, target_class="shard")
    adversarial = attacked(iterative, target_classes=target_classes)

    def target_score(images: Tensor) -> Tensor:
        logits = steep_network()(images)
        if loss == "cross-entropy":
            logits = logits.log_softmax(dim=1)
        score: Tensor = logits.gather(1, target_classes.view(-1, 1)).squeeze(1)
        best_rival: Tensor = logits.scatter(1, target_classes.view(-1, 1), -torch.inf).amax(dim=1)
        return score - best_rival if loss == "margin" else score

    assert float(target_score(adversarial).sum()) > float(target_score(originals().double() / 255).sum())


def test_target_classes_are_none_given_fixed_or_least_likely() -> None:
    images, model = originals().double() / 255, steep_network()
    given = torch.tensor([4, 4, 4])
    assert cheap_attack("mi").target_classes(model, images, LABELS, KEYS, given) is None
    assert cheap_attack("mi", target_class="shard").target_classes(model, images, LABELS, KEYS, given) is given
    fixed = cheap_attack("mi", target_class=2).target_classes(model, images, LABELS, KEYS)
    assert fixed is not None
    assert fixed.tolist() == [2, 2, 2]
    least_likely = cheap_attack("mi", target_class="least-likely").target_classes(model, images, LABELS, KEYS)
    assert least_likely is not None
    assert least_likely.tolist() == model(images).argmin(dim=1).tolist()
    with pytest.raises(ValueError, match="target_class = 9, and there are 5"):
        cheap_attack("mi", target_class=9).target_classes(model, images, LABELS, KEYS)
    with pytest.raises(ValueError, match="no target classes"):
        cheap_attack("mi", target_class="shard").target_classes(model, images, LABELS, KEYS)


def test_random_target_classes_are_never_the_label_and_do_not_depend_on_the_batch() -> None:
    images, model = originals().double() / 255, steep_network()
    iterative = cheap_attack("mi", target_class="random")
    keys = [f"{index}" for index in range(400)]
    labels = torch.arange(400) % 5
    drawn = iterative.target_classes(model, images[:1].expand(400, -1, -1, -1), labels, keys)
    assert drawn is not None
    assert not (drawn == labels).any()
    assert sorted(set((drawn - labels).remainder(5).tolist())) == [1, 2, 3, 4]
    single = iterative.target_classes(model, images[:1], labels[7:8], keys[7:8])
    assert single is not None
    assert single.tolist() == drawn[7:8].tolist()


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
def test_gradients_are_counted(combination: str, settings: dict[str, Any], gradients: int) -> None:
    counter = GradientCounter()
    iterative = attack(combination, steps=3, **settings)
    iterative(steep_network(), originals().double() / 255, LABELS, KEYS, counter=counter)
    assert counter.gradients == gradients


@pytest.mark.parametrize("inner", ["ti", "di", "vt", "pgn"])
@pytest.mark.parametrize("form", ["literal", "backward", "central"])
def test_every_form_of_the_penalty_approaches_the_exact_product(inner: str, form: PenaltyForm) -> None:
    """Also if it wraps a random function, or one that is not a gradient."""
    images = originals().double() / 255
    types: dict[str, Any] = {**INPUT_TRANSFORMS, **GRADIENT_TRANSFORMS}
    part: Any = variants.CHEAP_PARTS.get(inner) or (DiverseInput(probability=1) if inner == "di" else types[inner]())
    input_transforms = [part] if inner in INPUT_TRANSFORMS else []
    gradient_transforms = [part] if inner in GRADIENT_TRANSFORMS else []

    def penalty(form: PenaltyForm, r: float) -> Tensor:
        draws = Draws(0, KEYS)
        batch = Batch(LABELS, draws, AdmixPool(originals(), LABELS), 8 / 255, 2 / 255, 5)
        gradient = loss_gradient(steep_network(), objective("cross-entropy", LABELS), input_transforms, batch)
        for transform in gradient_transforms:
            gradient = transform(gradient, batch)
        draws.begin_step(2)
        plain = gradient(images)
        draws.begin_step(3)
        gradient(images)  # changes the state of transforms that have one
        draws.begin_step(2)
        penalised = GradientNormPenalty(form, r=r, beta=1.0)(gradient, batch)(images)
        return (plain - penalised) / r

    exact, difference = penalty("exact", 1e-5), penalty(form, 1e-5)
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(1), difference.flatten(1))
    assert float(cosine.min()) > 0.99, cosine
