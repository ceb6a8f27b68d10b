"""The attack loop: random start, momentum, look-ahead, step and projection, as in the papers' algorithms."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.attack import ball
from pipeline.attack.ball import BallNorm
from pipeline.attack.batch import AdmixPool, Batch, GradientCounter
from pipeline.attack.draws import Draws
from pipeline.attack.ensemble import enlarged
from pipeline.attack.gradient import GradientFunction, loss_gradient
from pipeline.attack.gradient_transforms import GradientTransform
from pipeline.attack.input_transforms import DiverseInput, InputTransform
from pipeline.attack.losses import Loss, objective
from pipeline.attack.precision import Precision

# The class that a targeted attack aims at: the one that the shard holds for the image, a random one other than the
# label, the one that the source considers least likely, or a fixed class.
TargetClass = Literal["shard", "random", "least-likely"] | int

# Numbers of the draws before step 0: the random start, and random target classes.
_START = -1
_TARGET_CLASS = -2


@dataclass(frozen=True)
class Iterative:
    """Iterated steps along an accumulated gradient, inside a ball.

        z ← x + α·μ·v  with Nesterov's look-ahead, otherwise x
        v ← μ·v + g/mean|g|,   g = transformed ∇ℓ(z)           per image
        x ← project(x + α·sign(v))                             onto the ball and [0, 1]

    FGSM is one step of ε; I-FGSM has decay 0; PGD starts at random; MI-FGSM has decay 1; NI-FGSM looks ahead as well.
    In an L2 ball the step is α·v/‖v‖₂, and the look-ahead α·μ·v/‖v‖₂, although it is published for L∞ only. The papers
    divide g by ‖g‖₁, which is mean|g| times a constant.

    Attributes:
        name: Name in results.
        epsilon: Budget on [0, 1]: the largest change of a value, or the L2 norm of the perturbation.
        steps: T.
        step_size: α, in the unit of epsilon.
        decay: μ.
        nesterov: Whether the gradient is taken at the point that momentum leads to.
        random_start: Whether the first point is drawn from the ball.
        norm: Norm of the ball.
        loss: Loss whose objective is maximised.
        target_class: Class of a targeted attack; None for an untargeted attack.
        input_transforms: Applied to the images that the source gets, in this order.
        gradient_transforms: Applied to the gradient function, innermost first.
        seed: Seed of all draws.
        precision: Precision of the source's forward and backward passes.

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
    target_class: TargetClass | None = None
    input_transforms: tuple[InputTransform, ...] = field(default=(), metadata={"recorded_as": "views"})
    gradient_transforms: tuple[GradientTransform, ...] = field(default=(), metadata={"recorded_as": "transforms"})
    seed: int = 0
    precision: Precision = "float32"

    @property
    def enlargement(self) -> float:
        """Side of the images that the source gets, as a multiple of its input size."""
        larger = [transform for transform in self.input_transforms if isinstance(transform, DiverseInput)]
        return max([transform.enlargement for transform in larger], default=1.0)

    def target_classes(
        self, model: nn.Module, images: Tensor, labels: Tensor, keys: Sequence[str], given: Tensor | None = None
    ) -> Tensor | None:
        """The classes that the attack aims at, (B,) int64; None for an untargeted attack.

        Args:
            model: The source.
            images: (B, 3, H, W) float32 in [0, 1].
            labels: (B,) int64, the true classes.
            keys: The images' keys.
            given: (B,) int64, the shard's target classes; required by `target_class = "shard"`.

        Raises:
            ValueError: The shard gives none, or a fixed class is out of the model's range.
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
            least_likely: Tensor = logits.argmin(dim=1)
            return least_likely
        if self.target_class == "random":
            draws = Draws(self.seed, keys, images.device)
            draws.begin_step(_TARGET_CLASS)
            other = draws.below(logits.shape[1] - 1)
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
        pool: AdmixPool | None = None,
        counter: GradientCounter | None = None,
    ) -> Tensor:
        """Adversarial images.

        Args:
            model: The source; maps images in [0, 1] to logits (B, classes); or an `Ensemble`.
            images: (B, 3, H, W) float32 in [0, 1].
            labels: (B,) int64, the true classes.
            keys: The images' keys.
            target_classes: (B,) int64, as returned by the method of this name.
            pool: Images that Admix mixes in; by default these images, so that results depend on the batch.
            counter: Counts the gradients that an image costs.

        Returns:
            (B, 3, H, W) float32 in [0, 1], within epsilon of `images` up to float rounding.

        Raises:
            FloatingPointError: The gradient of some image was not finite in some step.
        """
        epsilon, step_size = float(self.epsilon), float(self.step_size)
        draws = Draws(self.seed, keys, images.device)
        pool, counter = pool or AdmixPool(images, labels), counter or GradientCounter()
        batch = Batch(labels, draws, pool, epsilon, step_size, self.steps, counter, self.precision)
        gradient = self._transformed_gradient(model, batch, target_classes)
        adversarial = self.start(images, draws)
        velocity = torch.zeros_like(images)
        for step in range(self.steps):
            draws.begin_step(step)
            point = self._look_ahead(adversarial, velocity) if self.nesterov else adversarial
            velocity = self.decay * velocity + ball.divided_by_mean(gradient(point))
            adversarial = adversarial + step_size * ball.steepest_step(velocity, self.norm)
            adversarial = ball.project(adversarial, images, epsilon, self.norm)
        self._require_finite(velocity, keys)
        return adversarial

    def start(self, images: Tensor, draws: Draws) -> Tensor:
        """The images before the first step: as they are, or at a random point of the ball."""
        if not self.random_start:
            return images
        draws.begin_step(_START)
        return (images + ball.random_perturbation(draws, images, float(self.epsilon), self.norm)).clamp(0, 1)

    def _transformed_gradient(self, model: nn.Module, batch: Batch, target_classes: Tensor | None) -> GradientFunction:
        to_maximise = objective(self.loss, batch.labels, target_classes)
        gradient = loss_gradient(enlarged(model, self.enlargement), to_maximise, self.input_transforms, batch)
        for transform in self.gradient_transforms:
            gradient = transform(gradient, batch)
        return gradient

    def _look_ahead(self, adversarial: Tensor, velocity: Tensor) -> Tensor:
        direction = velocity if self.norm == "linf" else ball.steepest_step(velocity, self.norm)
        return adversarial + float(self.step_size) * self.decay * direction

    def _require_finite(self, velocity: Tensor, keys: Sequence[str]) -> None:
        # sign(NaN) is 0, so a broken gradient would pass for a weak attack; a velocity that was NaN once stays NaN.
        finite = velocity.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            raise FloatingPointError(f"{self.name}: the gradient is not finite on image {keys[finite.index(False)]!r}")
