"""Each attack, step for step, against an independent transcription of its published update."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attack.batch import AdmixPool
from pipeline.attack.ensemble import Ensemble, Fuse
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.gradient_transforms import (
    GradientTransform,
    PenalisedNeighbours,
    ReversePerturbation,
    Smoothing,
    VarianceTuning,
)
from pipeline.attack.input_transforms import Admix, DiverseInput, InputTransform, Scale
from pipeline.attack.recipe import build
from tests.attack import published_updates as published
from tests.attack.networks import steep_network
from tests.attack.published_updates import KEYS, LABELS, STEPS, photographs


def parts(**named: InputTransform | GradientTransform) -> dict[str, Any]:
    return {"parts": named}


L2: dict[str, Any] = {"norm": "l2", "epsilon": Fraction(3, 2), "step_size": Fraction(3, 5)}
TARGETED = {"target_class": 4}


def targeted_margin(z: Tensor, y: int) -> Tensor:
    return z[4] - published.best_rival(z, 4)


CASES: dict[str, tuple[str, dict[str, Any], Callable[[], Tensor]]] = {
    "fgsm": ("fgsm", {"steps": None, "step_size": None}, published.fgsm),
    "i": ("i", {}, published.ifgsm),
    "pgd": ("pgd", {}, published.pgd),
    "mi": ("mi", {}, published.mifgsm),
    "ni": ("ni", {}, published.nifgsm),
    "si": ("mi+si", parts(si=Scale()), published.sifgsm),
    "ti": ("mi+ti", {}, published.tifgsm(published.GAUSSIAN)),
    "ti-uniform": ("mi+ti", parts(ti=Smoothing("uniform", 7)), published.tifgsm(published.UNIFORM)),
    "ti-linear": ("mi+ti", parts(ti=Smoothing("linear", 7)), published.tifgsm(published.LINEAR)),
    "di": ("mi+di", {}, published.difgsm(rate=1.1, back=True)),
    "di-not-back": ("mi+di", parts(di=DiverseInput(variant="no-resize-back")), published.difgsm(rate=1.1, back=False)),
    "di-small": ("mi+di", parts(di=DiverseInput(rate=0.9)), published.difgsm(rate=0.9, back=False)),
    "admix": ("mi+admix", parts(admix=Admix()), published.admix),
    "vt+mi": ("vt+mi", parts(vt=VarianceTuning(samples=4)), published.variance_tuning(nesterov=False)),
    "vt+ni": ("vt+ni", parts(vt=VarianceTuning(samples=4)), published.variance_tuning(nesterov=True)),
    "pgn": ("pgn+mi", parts(pgn=PenalisedNeighbours(samples=4)), published.pgn),
    "rap": ("rap+mi", parts(rap=ReversePerturbation(steps=3)), published.rap),
    "gnp": ("gnp+mi", {}, published.gnp),
    "look-ahead": ("gnp+mi", parts(gnp=GradientNormPenalty("look-ahead", "mean-abs")), published.look_ahead),
    "l2-i": ("i", L2, published.l2_attack()),
    "l2-pgd": ("pgd", L2, published.l2_attack(start=True)),
    "l2-mi": ("mi", L2, published.l2_attack(mu=1)),
    "l2-ni": ("ni", L2, published.l2_attack(mu=1, nesterov=True)),
    "logit": ("mi", {"loss": "logit"}, published.mifgsm_on(lambda z, y: -z[y])),
    "margin": ("mi", {"loss": "margin"}, published.mifgsm_on(lambda z, y: published.best_rival(z, y) - z[y])),
    "targeted": ("mi", TARGETED, published.mifgsm_on(lambda z, y: z.softmax(dim=0)[4].log())),
    "targeted-logit": ("mi", {"loss": "logit", **TARGETED}, published.mifgsm_on(lambda z, y: z[4])),
    "targeted-margin": ("mi", {"loss": "margin", **TARGETED}, published.mifgsm_on(targeted_margin)),
}


def attacked(combination: str, settings: dict[str, Any]) -> Tensor:
    """The adversarial images of the code under test."""
    budget = {"epsilon": Fraction(16, 255), "steps": STEPS, "step_size": Fraction(16, 2550)}
    attack = build(combination, **{**budget, **settings})
    images, model = photographs(), steep_network()
    target_classes = attack.target_classes(model, images, LABELS, KEYS)
    return attack(model, images, LABELS, KEYS, target_classes=target_classes)


@pytest.mark.parametrize("name", CASES)
def test_an_attack_equals_its_published_update(name: str) -> None:
    combination, settings, transcription = CASES[name]
    torch.testing.assert_close(attacked(combination, settings), transcription(), atol=1e-7, rtol=0)


def test_all_cases_give_different_images() -> None:
    results = {name: attacked(combination, settings) for name, (combination, settings, _) in CASES.items()}
    for (name, images), (other_name, other_images) in itertools.combinations(results.items(), 2):
        assert (images - other_images).abs().max() > 1e-3, f"the cases {name} and {other_name} differ"


@pytest.mark.parametrize("fuse", ["logits", "probabilities", "losses"])
def test_an_ensemble_equals_its_published_update(fuse: Fuse) -> None:
    members = [steep_network(seed) for seed in range(3)]

    def update(x: Tensor, t: int) -> Tensor:
        x = x.clone().requires_grad_()
        outputs = [member(x) for member in members]
        if fuse == "logits":
            loss = F.cross_entropy(sum(outputs) / 3, LABELS, reduction="sum")
        elif fuse == "probabilities":
            mean = sum(logits.softmax(dim=1) for logits in outputs) / 3
            loss = F.nll_loss(mean.log(), LABELS, reduction="sum")
        else:
            loss = sum(F.cross_entropy(logits, LABELS, reduction="sum") for logits in outputs) / 3  # type: ignore[assignment]
        return torch.autograd.grad(loss, x)[0]

    attack = build("mi", epsilon=Fraction(16, 255), steps=STEPS, step_size=Fraction(16, 2550))
    adversarial = attack(Ensemble(members, fuse), photographs(), LABELS, KEYS)
    torch.testing.assert_close(adversarial, published.momentum(update, photographs()), atol=1e-7, rtol=0)


def test_admix_with_a_pool_does_not_depend_on_the_batch() -> None:
    attack = build("mi+admix", epsilon=Fraction(16, 255), steps=2)
    pool = AdmixPool((photographs() * 255).round().to(torch.uint8), LABELS)
    batch = attack(steep_network(), photographs(), LABELS, KEYS, pool=pool)
    single = attack(steep_network(), photographs()[1:2], LABELS[1:2], KEYS[1:2], pool=pool)
    torch.testing.assert_close(batch[1:2], single, atol=1e-7, rtol=0)
