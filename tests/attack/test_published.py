"""Each attack against an independent transcription of its published update: step for step, in float64, on a small CNN.

Transcriptions share nothing with the code under test but the random numbers, which they draw in the same order.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attack.batch import Pool
from pipeline.attack.draws import Draws
from pipeline.attack.ensemble import Ensemble, Fuse
from pipeline.attack.gradient_transforms import (
    GradientNormPenalty,
    PenalisedNeighbours,
    ReversePerturbation,
    Smoothing,
    Transform,
    VarianceTuning,
)
from pipeline.attack.input_transforms import Admix, DiverseInput, Scale, View
from pipeline.attack.recipe import build

EPSILON, ALPHA, STEPS, SIDE = 16 / 255, 1.6 / 255, 5, 20
KEYS = ["a", "b", "c"]
LABELS = torch.tensor([1, 0, 3])

Grad = Callable[[Tensor], Tensor]


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    last = torch.nn.Linear(32, 5)
    # Steep, so that the gradient turns within a few steps and each attack goes a way of its own.
    last.weight.data *= 30
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, stride=2),
        torch.nn.GELU(),
        torch.nn.Conv2d(8, 8, 3),
        torch.nn.GELU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        last,
    )
    return layers.double().requires_grad_(False)


def photographs() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(3, 3, SIDE, SIDE, dtype=torch.float64)


def gradient_of(loss: Callable[[Tensor], Tensor], seen: Callable[[Tensor], Tensor] = lambda x: x) -> Grad:
    """∇ₓ of a loss of the logits at seen(x), image by image."""
    model = network()

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(loss(model(seen(x))), x)[0]

    return gradient


def ce_gradient(seen: Callable[[Tensor], Tensor] = lambda x: x) -> Grad:
    """∇ₓ of the cross-entropy at seen(x), image by image."""
    return gradient_of(lambda logits: F.cross_entropy(logits, LABELS, reduction="none").sum(), seen)


def mean_abs(g: Tensor) -> Tensor:
    return g / g.abs().mean(dim=(1, 2, 3), keepdim=True)


def clip(x: Tensor, x0: Tensor) -> Tensor:
    return torch.max(torch.min(x, x0 + EPSILON), x0 - EPSILON).clamp(0, 1)


def momentum(update: Callable[[Tensor, int], Tensor], x0: Tensor, *, mu: float = 1.0) -> Tensor:
    """MI-FGSM, algorithm 1, around any gradient."""
    x, g = x0, torch.zeros_like(x0)
    for t in range(STEPS):
        g = mu * g + mean_abs(update(x, t))
        x = clip(x + ALPHA * g.sign(), x0)
    return x


def fgsm() -> Tensor:
    x0 = photographs()
    return clip(x0 + EPSILON * ce_gradient()(x0).sign(), x0)


def ifgsm() -> Tensor:
    gradient = ce_gradient()
    return momentum(lambda x, t: gradient(x), photographs(), mu=0)


def pgd() -> Tensor:
    x0, draws, gradient = photographs(), Draws(0, KEYS), ce_gradient()
    draws.begin(-1)
    x = (x0 + (draws.uniform(3, SIDE, SIDE).double() * 2 - 1) * EPSILON).clamp(0, 1)
    for _ in range(STEPS):
        x = clip(x + ALPHA * gradient(x).sign(), x0)
    return x


def mifgsm() -> Tensor:
    gradient = ce_gradient()
    return momentum(lambda x, t: gradient(x), photographs())


def nifgsm() -> Tensor:
    x0, gradient = photographs(), ce_gradient()
    x, g = x0, torch.zeros_like(x0)
    for _ in range(STEPS):
        g = g + mean_abs(gradient(x + ALPHA * g))
        x = clip(x + ALPHA * g.sign(), x0)
    return x


def sifgsm() -> Tensor:
    gradients = [ce_gradient(lambda x, i=i: x / 2**i) for i in range(5)]  # type: ignore[misc]
    return momentum(lambda x, t: torch.stack([gradient(x) for gradient in gradients]).mean(dim=0), photographs())


def tifgsm(line: Tensor) -> Callable[[], Tensor]:
    """TI-FGSM by the square kernel whose every row and column is this line, up to a factor."""

    def run() -> Tensor:
        kernel = torch.outer(line, line) / torch.outer(line, line).sum()
        gradient, side = ce_gradient(), len(line)

        def smoothed(x: Tensor, t: int) -> Tensor:
            return F.conv2d(gradient(x), kernel.expand(3, 1, side, side), padding=side // 2, groups=3)

        return momentum(smoothed, photographs())

    return run


GAUSSIAN = torch.exp(-(torch.linspace(-3, 3, 15, dtype=torch.float64) ** 2) / 2)
# Section 3.3 with k = 3: 1/(2k+1)² everywhere, and (1 − |i|/(k+1))·(1 − |j|/(k+1)).
UNIFORM, LINEAR = torch.ones(7, dtype=torch.float64), torch.tensor([1, 2, 3, 4, 3, 2, 1], dtype=torch.float64)


def difgsm(*, rate: float, back: bool) -> Callable[[], Tensor]:
    """Per image: resize, pad, and bring back, by torch's own functions."""

    def run() -> Tensor:
        draws, least, most = Draws(0, KEYS), *sorted((SIDE, int(SIDE * rate)))

        def update(x: Tensor, t: int) -> Tensor:
            draws.begin(t)
            draws.evaluate()
            chosen, sides = draws.uniform() < 0.5, least + draws.below(most - least)
            tops, lefts = ((draws.uniform().double() * (most - sides + 1)).long() for _ in range(2))

            def seen(x: Tensor) -> Tensor:
                made = []
                for i, image in enumerate(x.unsqueeze(1)):
                    side = int(sides[i]) if chosen[i] else most
                    top, left = (int(tops[i]), int(lefts[i])) if chosen[i] else (0, 0)
                    resized = F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
                    padded = F.pad(resized, (left, most - side - left, top, most - side - top))
                    if back:
                        padded = F.interpolate(padded, (SIDE, SIDE), mode="bilinear", align_corners=False)
                    made.append(padded if chosen[i] or not back else image)
                return torch.cat(made)

            return ce_gradient(seen)(x)

        return momentum(update, photographs())

    return run


def admix() -> Tensor:
    draws, x0 = Draws(0, KEYS), photographs()

    def update(x: Tensor, t: int) -> Tensor:
        draws.begin(t)
        draws.evaluate()
        total = torch.zeros_like(x)
        for sample in range(3):
            u = draws.shared(f"admix {sample}").double()
            partners = torch.stack([[x0[j] for j in range(3) if j != i][int(u[i] * 2)] for i in range(3)])
            for scale in range(5):
                total += ce_gradient(lambda x, p=partners, i=scale: (x + 0.2 * p) / 2**i)(x)  # type: ignore[misc]
        return total / 15

    return momentum(update, x0)


def variance_tuning(*, nesterov: bool) -> Callable[[], Tensor]:
    def run() -> Tensor:
        x0, gradient, draws = photographs(), ce_gradient(), Draws(0, KEYS)
        x, g, v = x0, torch.zeros_like(x0), torch.zeros_like(x0)
        for t in range(STEPS):
            draws.begin(t)
            at = x + ALPHA * g if nesterov else x
            draws.evaluate()
            here = gradient(at)
            g = g + mean_abs(here + v)
            around = torch.zeros_like(x)
            for _ in range(4):
                around += gradient(at + 1.5 * EPSILON * (draws.uniform(3, SIDE, SIDE).double() * 2 - 1))
                draws.evaluate()
            v = around / 4 - here
            x = clip(x + ALPHA * g.sign(), x0)
        return x

    return run


def pgn() -> Tensor:
    gradient, draws = ce_gradient(), Draws(0, KEYS)

    def update(x: Tensor, t: int) -> Tensor:
        draws.begin(t)
        total = torch.zeros_like(x)
        for _ in range(4):
            near = x + 3.0 * EPSILON * (draws.uniform(3, SIDE, SIDE).double() * 2 - 1)
            first = gradient(near)
            second = gradient(near - ALPHA * mean_abs(first))
            draws.evaluate()
            total += 0.5 * first + 0.5 * second
        return total / 4

    return momentum(update, photographs())


def rap() -> Tensor:
    gradient = ce_gradient()

    def update(x: Tensor, t: int) -> Tensor:
        n = torch.zeros_like(x)
        if t >= 2:  # a quarter of 5 steps have passed
            for _ in range(3):
                n = (n - 2 / 255 * gradient(x + n).sign()).clamp(-16 / 255, 16 / 255)
        return gradient(x + n)

    return momentum(update, photographs())


def look_ahead() -> Tensor:
    """As TransferAttack's class GNP has it: g1, the gradient a step along g1/mean|g1| further, and their sum."""
    gradient = ce_gradient()

    def update(x: Tensor, t: int) -> Tensor:
        g1 = gradient(x)
        g2 = gradient(x + 0.01 * g1 / g1.abs().mean(dim=(1, 2, 3), keepdim=True))
        return (1 + 0.8) * g1 + 0.8 * g2

    return momentum(update, photographs())


def gnp() -> Tensor:
    """Algorithm 1 of the paper, with its L2 norm."""
    gradient = ce_gradient()

    def update(x: Tensor, t: int) -> Tensor:
        g1 = gradient(x)
        g2 = gradient(x + 0.01 * g1 / g1.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        return (1 + 0.8) * g1 - 0.8 * g2

    return momentum(update, photographs())


def l2(x: Tensor) -> Tensor:
    """‖x‖₂, image by image."""
    return x.pow(2).sum(dim=(1, 2, 3), keepdim=True).sqrt()


def in_l2(*, mu: float = 0.0, nesterov: bool = False, start: bool = False) -> Callable[[], Tensor]:
    """PGD in an L2 ball of 1.5, steps of 0.6; or MI-FGSM there, Dong et al. section 3.3: by v/‖v‖₂, v as for L∞.

    Nesterov's look-ahead is published for L∞ alone: here it is as far as a step.
    """

    def run() -> Tensor:
        x0, draws, gradient = photographs(), Draws(0, KEYS), ce_gradient()
        x, v = x0, torch.zeros_like(x0)
        if start:
            draws.begin(-1)
            # Evenly within a ball of d dimensions: a direction by normal numbers, a radius by the d-th root.
            radius = draws.uniform().double() ** (1 / x0[0].numel())
            n = draws.normal(3, SIDE, SIDE).double()
            x = (x0 + 1.5 * radius.view(-1, 1, 1, 1) * n / l2(n)).clamp(0, 1)
        for t in range(STEPS):
            at = x + 0.6 * mu * v / l2(v) if nesterov and t else x
            v = mu * v + mean_abs(gradient(at))
            moved = x + 0.6 * v / l2(v) - x0
            x = (x0 + moved * (1.5 / l2(moved)).clamp(max=1)).clamp(0, 1)
        return x

    return run


def raising(loss: Callable[[Tensor, int], Tensor]) -> Callable[[], Tensor]:
    """MI-FGSM on a loss of one image's logits and label."""

    def run() -> Tensor:
        pairs = list(enumerate(LABELS.tolist()))
        gradient = gradient_of(lambda logits: torch.stack([loss(logits[i], y) for i, y in pairs]).sum())
        return momentum(lambda x, t: gradient(x), photographs())

    return run


def best_but(z: Tensor, y: int) -> Tensor:
    """The largest logit of another class."""
    best: Tensor = torch.stack([z[j] for j in range(len(z)) if j != y]).max()
    return best


def parts(**named: View | Transform) -> dict[str, Any]:
    return {"parts": named}


L2: dict[str, Any] = {"norm": "l2", "epsilon": Fraction(3, 2), "step_size": Fraction(3, 5)}
FAR = {"target_class": 4}

CASES: dict[str, tuple[str, dict[str, Any], Callable[[], Tensor]]] = {
    "fgsm": ("fgsm", {"steps": None, "step_size": None}, fgsm),
    "i": ("i", {}, ifgsm),
    "pgd": ("pgd", {}, pgd),
    "mi": ("mi", {}, mifgsm),
    "ni": ("ni", {}, nifgsm),
    "si": ("mi+si", parts(si=Scale()), sifgsm),
    "ti": ("mi+ti", {}, tifgsm(GAUSSIAN)),
    "ti-uniform": ("mi+ti", parts(ti=Smoothing("uniform", 7)), tifgsm(UNIFORM)),
    "ti-linear": ("mi+ti", parts(ti=Smoothing("linear", 7)), tifgsm(LINEAR)),
    "di": ("mi+di", {}, difgsm(rate=1.1, back=True)),
    "di-not-back": ("mi+di", parts(di=DiverseInput(variant="no-resize-back")), difgsm(rate=1.1, back=False)),
    "di-small": ("mi+di", parts(di=DiverseInput(rate=0.9)), difgsm(rate=0.9, back=False)),
    "admix": ("mi+admix", parts(admix=Admix()), admix),
    "vt+mi": ("vt+mi", parts(vt=VarianceTuning(samples=4)), variance_tuning(nesterov=False)),
    "vt+ni": ("vt+ni", parts(vt=VarianceTuning(samples=4)), variance_tuning(nesterov=True)),
    "pgn": ("pgn+mi", parts(pgn=PenalisedNeighbours(samples=4)), pgn),
    "rap": ("rap+mi", parts(rap=ReversePerturbation(steps=3)), rap),
    "gnp": ("gnp+mi", {}, gnp),
    "look-ahead": ("gnp+mi", parts(gnp=GradientNormPenalty("look-ahead", "mean-abs")), look_ahead),
    "l2-i": ("i", L2, in_l2()),
    "l2-pgd": ("pgd", L2, in_l2(start=True)),
    "l2-mi": ("mi", L2, in_l2(mu=1)),
    "l2-ni": ("ni", L2, in_l2(mu=1, nesterov=True)),
    "logit": ("mi", {"loss": "logit"}, raising(lambda z, y: -z[y])),
    "margin": ("mi", {"loss": "margin"}, raising(lambda z, y: best_but(z, y) - z[y])),
    "towards": ("mi", FAR, raising(lambda z, y: z.softmax(dim=0)[4].log())),
    "towards-logit": ("mi", {"loss": "logit", **FAR}, raising(lambda z, y: z[4])),
    "towards-margin": ("mi", {"loss": "margin", **FAR}, raising(lambda z, y: z[4] - best_but(z, 4))),
}


def ours(combination: str, settings: dict[str, Any]) -> Tensor:
    budget = {"epsilon": Fraction(16, 255), "steps": STEPS, "step_size": Fraction(16, 2550)}
    made = build(combination, **{**budget, **settings})
    x, y = photographs(), LABELS
    return made(network(), x, y, KEYS, target_classes=made.target_classes(network(), x, y, KEYS))


@pytest.mark.parametrize("name", CASES)
def test_an_attack_is_what_its_paper_says(name: str) -> None:
    combination, settings, transcription = CASES[name]
    torch.testing.assert_close(ours(combination, settings), transcription(), atol=1e-7, rtol=0)


def test_no_two_of_them_are_the_same() -> None:
    made = {name: ours(combination, settings) for name, (combination, settings, _) in CASES.items()}
    for name, one in made.items():
        for other, two in made.items():
            assert name == other or (one - two).abs().max() > 1e-3, f"{name} and {other}: the case tells them apart"


@pytest.mark.parametrize("fuse", ["logits", "probabilities", "losses"])
def test_an_ensemble_is_what_its_paper_says(fuse: Fuse) -> None:
    members = [network(seed) for seed in range(3)]

    def update(x: Tensor, t: int) -> Tensor:
        x = x.clone().requires_grad_()
        logits = [member(x) for member in members]
        if fuse == "logits":
            loss = F.cross_entropy(sum(logits) / 3, LABELS, reduction="sum")
        elif fuse == "probabilities":
            loss = F.nll_loss((sum(each.softmax(dim=1) for each in logits) / 3).log(), LABELS, reduction="sum")
        else:
            loss = sum(F.cross_entropy(each, LABELS, reduction="sum") for each in logits) / 3  # type: ignore[assignment]
        return torch.autograd.grad(loss, x)[0]

    made = build("mi", epsilon=Fraction(16, 255), steps=STEPS, step_size=Fraction(16, 2550))
    found = made(Ensemble(members, fuse), photographs(), LABELS, KEYS)
    torch.testing.assert_close(found, momentum(update, photographs()), atol=1e-7, rtol=0)


def test_a_pool_stands_in_for_the_batch() -> None:
    made = build("mi+admix", epsilon=Fraction(16, 255), steps=2)
    pool = Pool((photographs() * 255).round().to(torch.uint8), LABELS)
    together = made(network(), photographs(), LABELS, KEYS, pool=pool)
    alone = made(network(), photographs()[1:2], LABELS[1:2], KEYS[1:2], pool=pool)
    torch.testing.assert_close(together[1:2], alone, atol=1e-7, rtol=0)
