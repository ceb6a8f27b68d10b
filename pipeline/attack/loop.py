"""The loops: start, momentum, look-ahead, step and projection, as the papers' algorithms read."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.attack import ball
from pipeline.attack.ball import BallNorm
from pipeline.attack.batch import Batch, Pool, Tally
from pipeline.attack.draws import Draws
from pipeline.attack.ensemble import enlarged
from pipeline.attack.gradient import loss_gradient
from pipeline.attack.gradient_transforms import Transform
from pipeline.attack.input_transforms import DiverseInput, View
from pipeline.attack.losses import Loss, objective
from pipeline.attack.precision import Precision

# Which class a targeted attack wants: the one that the shard holds beside the label, a drawn one other than the label,
# the one that the source thinks the least likely of the image, or always the same.
Wanted = Literal["shard", "random", "least-likely"] | int


@dataclass(frozen=True)
class Iterative:
    """Iterated steps along an accumulated gradient, inside a ball.

        y ← x + α·μ·v  with Nesterov's look-ahead, else x
        v ← μ·v + g/mean|g|,   g = transforms(∇ℓ)(y)           per image
        x ← project(x + α·sign(v))                             to the ball and to [0, 1]

    FGSM is one step of ε; I-FGSM has decay 0; PGD begins at random; MI-FGSM has decay 1; NI-FGSM looks ahead as well.
    In an L2 ball the step is α·v/‖v‖₂, and so is the look-ahead, times μ, which is published for L∞ alone. The papers
    divide g by ‖g‖₁, which is mean|g| times a constant.

    Attributes:
        name: What results call the attack.
        epsilon: The budget on [0, 1]: the largest change of a value, or the L2 norm of all.
        steps: T.
        step_size: α, in the same unit.
        decay: μ.
        nesterov: Whether the gradient is taken where momentum would lead.
        random_start: Whether the first point is drawn from the ball.
        norm: Of the ball.
        loss: What is raised, or for a wanted class lowered.
        target_class: Which class is wanted; None for an untargeted attack.
        views: What the source sees of the images, in this order.
        transforms: Applied to the gradient function, innermost first.
        seed: Seed of every draw.
        precision: In which the source is differentiated.

    References:
        Goodfellow et al., "Explaining and Harnessing Adversarial Examples", arXiv 1412.6572 (FGSM).
        Kurakin et al., "Adversarial examples in the physical world", arXiv 1607.02533 (I-FGSM).
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv 1706.06083 (PGD).
        Dong et al., "Boosting Adversarial Attacks with Momentum", arXiv 1710.06081, algorithm 1 (MI-FGSM), μ = 1.
        Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", arXiv 1908.06281,
        eq. 6 to 8 (NI-FGSM), μ = 1.
    """

    name: str
    epsilon: Fraction
    steps: int
    step_size: Fraction
    decay: float = 0.0
    nesterov: bool = False
    random_start: bool = False
    norm: BallNorm = "linf"
    loss: Loss = "cross-entropy"
    target_class: Wanted | None = None
    views: tuple[View, ...] = ()
    transforms: tuple[Transform, ...] = ()
    seed: int = 0
    precision: Precision = "float32"

    @property
    def enlargement(self) -> float:
        """How much larger than its input the source is shown images."""
        return max([view.enlargement for view in self.views if isinstance(view, DiverseInput)], default=1.0)

    def target_classes(
        self, model: nn.Module, images: Tensor, labels: Tensor, keys: Sequence[str], given: Tensor | None = None
    ) -> Tensor | None:
        """The classes that are wanted, (B,) int64; None for an untargeted attack.

        Args:
            model: The source.
            images: (B, 3, H, W) float32 in [0, 1].
            labels: (B,) int64, the true classes.
            keys: The images' keys.
            given: (B,) int64, the shard's own; wanted by `target_class = "shard"`.

        Raises:
            ValueError: The shard gives none, or a fixed class is one that the model does not know.
        """
        if self.target_class is None:
            return None
        if self.target_class == "shard":
            if given is None:
                raise ValueError(f"{self.name}: target_class = 'shard', and the images came with no target classes")
            return given
        with torch.no_grad():
            logits = model(images)
        if self.target_class == "least-likely":
            least: Tensor = logits.argmin(dim=1)
            return least
        if self.target_class == "random":
            drawn = Draws(self.seed, keys, images.device)
            drawn.begin(_CLASS)
            other = drawn.below(logits.shape[1] - 1)
            return other + (other >= labels)
        if self.target_class >= logits.shape[1]:
            raise ValueError(f"{self.name}: target_class = {self.target_class}, and there are {logits.shape[1]}")
        return torch.full_like(labels, self.target_class)

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        keys: Sequence[str],
        *,
        target_classes: Tensor | None = None,
        pool: Pool | None = None,
        tally: Tally | None = None,
    ) -> Tensor:
        """Adversarial images.

        Args:
            model: The source; maps images in [0, 1] to logits (B, classes); or an `Ensemble`.
            images: (B, 3, H, W) float32 in [0, 1].
            labels: (B,) int64, the true classes.
            keys: The images' keys.
            target_classes: (B,) int64, as the method of that name has them.
            pool: What Admix mixes in; by default these images, which then depend on their batch.
            tally: Counts the gradients that an image costs.

        Returns:
            (B, 3, H, W) float32 in [0, 1], within epsilon of `images` up to float rounding.

        Raises:
            FloatingPointError: The gradient was not finite on some image, in some step.
        """
        epsilon, step_size = float(self.epsilon), float(self.step_size)
        draws = Draws(self.seed, keys, images.device)
        pool, tally = pool or Pool(images, labels), tally or Tally()
        batch = Batch(labels, draws, pool, epsilon, step_size, self.steps, tally, self.precision)
        shown = enlarged(model, self.enlargement)
        raised = objective(self.loss, labels, target_classes)
        gradient = loss_gradient(shown, raised, self.views, batch)
        for transform in self.transforms:
            gradient = transform(gradient, batch)
        adversarial, velocity = self._start(images, draws), torch.zeros_like(images)
        for step in range(self.steps):
            draws.begin(step)
            point = self._ahead(adversarial, velocity) if self.nesterov else adversarial
            found = gradient(point)
            # Of a gradient that is zero, zero.
            tiny = torch.finfo(found.dtype).tiny
            velocity = self.decay * velocity + found / found.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
            moved = adversarial + step_size * ball.direction(velocity, self.norm)
            adversarial = ball.projected(moved, images, epsilon, self.norm)
        # sign(NaN) is 0, so that a broken gradient would pass for a weak attack; a velocity once NaN stays so.
        finite = velocity.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            raise FloatingPointError(f"{self.name}: the gradient is not finite on image {keys[finite.index(False)]!r}")
        return adversarial

    def _ahead(self, adversarial: Tensor, velocity: Tensor) -> Tensor:
        far = velocity if self.norm == "linf" else ball.direction(velocity, self.norm)
        return adversarial + float(self.step_size) * self.decay * far

    def _start(self, images: Tensor, draws: Draws) -> Tensor:
        if not self.random_start:
            return images
        draws.begin(_START)
        return ball.projected(images + _within(draws, images, float(self.epsilon), self.norm), images, 1.0, "linf")


@dataclass(frozen=True)
class Noise:
    """Random noise at full budget: what the ball does without an attack.

        L∞    x + ε·s,  s fair in {−1, 1}
        L2    x + ε·n/‖n‖₂,  n normal

    Attributes:
        name: What results call it.
        epsilon: The budget on [0, 1].
        norm: Of the ball.
        seed: Seed of the draws.
    """

    name: str
    epsilon: Fraction
    norm: BallNorm = "linf"
    seed: int = 0
    target_class: ClassVar[None] = None
    enlargement: ClassVar[float] = 1.0

    def target_classes(
        self, model: nn.Module, images: Tensor, labels: Tensor, keys: Sequence[str], given: Tensor | None = None
    ) -> None:
        """None: noise wants nothing."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        keys: Sequence[str],
        *,
        target_classes: Tensor | None = None,
        pool: Pool | None = None,
        tally: Tally | None = None,
    ) -> Tensor:
        """Noisy images, (B, 3, H, W) float32 in [0, 1]; of the rest only images and keys are looked at."""
        draws = Draws(self.seed, keys, images.device)
        if self.norm == "linf":
            noise = draws.signs(*images.shape[1:])
        else:
            noise = ball.direction(draws.normal(*images.shape[1:]), "l2")
        return (images + float(self.epsilon) * noise.to(images.dtype)).clamp(0, 1)


# The draws before the first step: where an attack begins, and which class it wants.
_START, _CLASS = -1, -2


def _within(draws: Draws, images: Tensor, epsilon: float, norm: BallNorm) -> Tensor:
    """A perturbation drawn evenly from the ball."""
    shape = images.shape[1:]
    if norm == "linf":
        return draws.uniform(*shape, low=-epsilon, high=epsilon).to(images.dtype)
    # In d dimensions the share of the volume within a radius grows as its d-th power.
    radius = draws.uniform().double().pow(1 / shape.numel()).view(-1, 1, 1, 1)
    return (ball.direction(draws.normal(*shape), "l2").double() * radius * epsilon).to(images.dtype)
