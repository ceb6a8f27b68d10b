"""Independent transcriptions of the attacks' published updates, in float64, on a small CNN.

They share nothing with the code under test except the random numbers, which they draw in the same order. x0: originals,
x: adversarial images, g: accumulated gradient, t: step, each as in the paper.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.attack.draws import Draws
from tests.attack.networks import steep_network

EPSILON, ALPHA, STEPS, SIDE = 16 / 255, 1.6 / 255, 5, 20
KEYS = ["a", "b", "c"]
LABELS = torch.tensor([1, 0, 3])

Gradient = Callable[[Tensor], Tensor]


def photographs() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(3, 3, SIDE, SIDE, dtype=torch.float64)


def gradient_of(loss: Callable[[Tensor], Tensor], transform: Callable[[Tensor], Tensor] = lambda x: x) -> Gradient:
    """∇ₓ of a loss of the logits at transform(x), per image."""
    model = steep_network()

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(loss(model(transform(x))), x)[0]

    return gradient


def ce_gradient(transform: Callable[[Tensor], Tensor] = lambda x: x) -> Gradient:
    """∇ₓ of the cross-entropy at transform(x), per image."""
    return gradient_of(lambda logits: F.cross_entropy(logits, LABELS, reduction="none").sum(), transform)


def divided_by_mean(g: Tensor) -> Tensor:
    return g / g.abs().mean(dim=(1, 2, 3), keepdim=True)


def clip(x: Tensor, x0: Tensor) -> Tensor:
    return torch.max(torch.min(x, x0 + EPSILON), x0 - EPSILON).clamp(0, 1)


def momentum(update: Callable[[Tensor, int], Tensor], x0: Tensor, *, mu: float = 1.0) -> Tensor:
    """MI-FGSM, algorithm 1, with any gradient."""
    x, g = x0, torch.zeros_like(x0)
    for t in range(STEPS):
        g = mu * g + divided_by_mean(update(x, t))
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
    draws.begin_step(-1)
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
        g = g + divided_by_mean(gradient(x + ALPHA * g))
        x = clip(x + ALPHA * g.sign(), x0)
    return x


def sifgsm() -> Tensor:
    gradients = [ce_gradient(lambda x, i=i: x / 2**i) for i in range(5)]  # type: ignore[misc]
    return momentum(lambda x, t: torch.stack([gradient(x) for gradient in gradients]).mean(dim=0), photographs())


def tifgsm(line: Tensor) -> Callable[[], Tensor]:
    """TI-FGSM with the square kernel whose rows and columns are multiples of this line."""

    def attacked() -> Tensor:
        kernel = torch.outer(line, line) / torch.outer(line, line).sum()
        gradient, side = ce_gradient(), len(line)

        def smoothed(x: Tensor, t: int) -> Tensor:
            return F.conv2d(gradient(x), kernel.expand(3, 1, side, side), padding=side // 2, groups=3)

        return momentum(smoothed, photographs())

    return attacked


GAUSSIAN = torch.exp(-(torch.linspace(-3, 3, 15, dtype=torch.float64) ** 2) / 2)
# Section 3.3 with k = 3: 1/(2k+1)² everywhere, and (1 − |i|/(k+1))·(1 − |j|/(k+1)).
UNIFORM, LINEAR = torch.ones(7, dtype=torch.float64), torch.tensor([1, 2, 3, 4, 3, 2, 1], dtype=torch.float64)


def difgsm(*, rate: float, back: bool) -> Callable[[], Tensor]:
    """DI-FGSM: each image resized, padded and resized back with torch's functions."""

    def attacked() -> Tensor:
        draws, least, most = Draws(0, KEYS), *sorted((SIDE, int(SIDE * rate)))

        def update(x: Tensor, t: int) -> Tensor:
            draws.begin_step(t)
            draws.begin_evaluation()
            chosen, sides = draws.uniform() < 0.5, least + draws.below(most - least)
            tops, lefts = ((draws.uniform().double() * (most - sides + 1)).long() for _ in range(2))

            def diverse(x: Tensor) -> Tensor:
                images = []
                for i, image in enumerate(x.unsqueeze(1)):
                    side = int(sides[i]) if chosen[i] else most
                    top, left = (int(tops[i]), int(lefts[i])) if chosen[i] else (0, 0)
                    resized = F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
                    padded = F.pad(resized, (left, most - side - left, top, most - side - top))
                    if back:
                        padded = F.interpolate(padded, (SIDE, SIDE), mode="bilinear", align_corners=False)
                    images.append(padded if chosen[i] or not back else image)
                return torch.cat(images)

            return ce_gradient(diverse)(x)

        return momentum(update, photographs())

    return attacked


def admix() -> Tensor:
    draws, x0 = Draws(0, KEYS), photographs()

    def update(x: Tensor, t: int) -> Tensor:
        draws.begin_step(t)
        draws.begin_evaluation()
        total = torch.zeros_like(x)
        for sample in range(3):
            u = draws.shared(f"admix {sample}").double()
            partners = torch.stack([[x0[j] for j in range(3) if j != i][int(u[i] * 2)] for i in range(3)])
            for scale in range(5):
                total += ce_gradient(lambda x, p=partners, i=scale: (x + 0.2 * p) / 2**i)(x)  # type: ignore[misc]
        return total / 15

    return momentum(update, x0)


def variance_tuning(*, nesterov: bool) -> Callable[[], Tensor]:
    def attacked() -> Tensor:
        x0, gradient, draws = photographs(), ce_gradient(), Draws(0, KEYS)
        x, g, v = x0, torch.zeros_like(x0), torch.zeros_like(x0)
        for t in range(STEPS):
            draws.begin_step(t)
            point = x + ALPHA * g if nesterov else x
            draws.begin_evaluation()
            g_x = gradient(point)
            g = g + divided_by_mean(g_x + v)
            total = torch.zeros_like(x)
            for _ in range(4):
                total += gradient(point + 1.5 * EPSILON * (draws.uniform(3, SIDE, SIDE).double() * 2 - 1))
                draws.begin_evaluation()
            v = total / 4 - g_x
            x = clip(x + ALPHA * g.sign(), x0)
        return x

    return attacked


def pgn() -> Tensor:
    gradient, draws = ce_gradient(), Draws(0, KEYS)

    def update(x: Tensor, t: int) -> Tensor:
        draws.begin_step(t)
        total = torch.zeros_like(x)
        for _ in range(4):
            x_i = x + 3.0 * EPSILON * (draws.uniform(3, SIDE, SIDE).double() * 2 - 1)
            g1 = gradient(x_i)
            g2 = gradient(x_i - ALPHA * divided_by_mean(g1))
            draws.begin_evaluation()
            total += 0.5 * g1 + 0.5 * g2
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
    """TransferAttack's class GNP: g1, the gradient g2 one step along g1/mean|g1| further, and their weighted sum."""
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
    """‖x‖₂ per image."""
    return x.pow(2).sum(dim=(1, 2, 3), keepdim=True).sqrt()


def l2_attack(*, mu: float = 0.0, nesterov: bool = False, start: bool = False) -> Callable[[], Tensor]:
    """PGD or MI-FGSM in an L2 ball of 1.5, with steps of 0.6 along v/‖v‖₂, v as for L∞; Dong et al. section 3.3.

    Nesterov's look-ahead is published for L∞ only; here it is as long as a step.
    """

    def attacked() -> Tensor:
        x0, draws, gradient = photographs(), Draws(0, KEYS), ce_gradient()
        x, v = x0, torch.zeros_like(x0)
        if start:
            draws.begin_step(-1)
            # Uniform in a ball of d dimensions: the direction from normal numbers, the radius by the d-th root.
            radius = draws.uniform().double() ** (1 / x0[0].numel())
            n = draws.normal(3, SIDE, SIDE).double()
            x = (x0 + 1.5 * radius.view(-1, 1, 1, 1) * n / l2(n)).clamp(0, 1)
        for t in range(STEPS):
            point = x + 0.6 * mu * v / l2(v) if nesterov and t else x
            v = mu * v + divided_by_mean(gradient(point))
            moved = x + 0.6 * v / l2(v) - x0
            x = (x0 + moved * (1.5 / l2(moved)).clamp(max=1)).clamp(0, 1)
        return x

    return attacked


def mifgsm_on(objective: Callable[[Tensor, int], Tensor]) -> Callable[[], Tensor]:
    """MI-FGSM that maximises an objective of one image's logits and label."""

    def attacked() -> Tensor:
        pairs = list(enumerate(LABELS.tolist()))
        gradient = gradient_of(lambda logits: torch.stack([objective(logits[i], y) for i, y in pairs]).sum())
        return momentum(lambda x, t: gradient(x), photographs())

    return attacked


def best_rival(z: Tensor, y: int) -> Tensor:
    """The largest logit of another class."""
    best: Tensor = torch.stack([z[j] for j in range(len(z)) if j != y]).max()
    return best
