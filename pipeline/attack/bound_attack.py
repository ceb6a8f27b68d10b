"""An attack bound to a source model: maps images and labels to adversarial images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor, nn

from pipeline.attack import recipe
from pipeline.attack.arguments import as_classes, as_images, as_keys
from pipeline.attack.ball import BallNorm
from pipeline.attack.draws import Draws
from pipeline.attack.loop import Iterative, TargetClass
from pipeline.attack.losses import Loss
from pipeline.attack.precision import Precision
from pipeline.attack.recipe import GRADIENT_TRANSFORMS, INPUT_TRANSFORMS, Attack
from pipeline.attack.settings import build_part, convert, require_known
from pipeline.attack.source import as_source, device_of, require_gradient, require_module, require_usable


@dataclass(frozen=True)
class BoundAttack:
    """An attack on one source model.

    Attributes:
        attack: The attack.
        source: The model attacked, or an `Ensemble`. Its logits are its answer, the answer's `.logits` or `["logits"]`,
            or the first of a tuple.
    """

    attack: Attack
    source: nn.Module

    def __call__(
        self,
        images: Any,
        labels: Any,
        *,
        keys: Sequence[str] | None = None,
        target_classes: Any = None,
    ) -> Tensor:
        """Adversarial images, (B, C, H, W) in [0, 1], within ε of `images` up to float rounding.

        They are float32, or float64 if the images are, on the images' device, and outside of every graph. The source,
        its gradients and the caller's tensors stay as they are, also within `torch.no_grad()` or `inference_mode()`.

        Args:
            images: (B, C, H, W) float in [0, 1]: a tensor, an array, or a list of one per image. The source gets them
                on its device and in its dtype.
            labels: (B,) whole numbers, the true classes.
            keys: Keys that an image's random draws depend on; by default its index in the batch.
            target_classes: (B,) whole numbers, required if the attack was built with `target_class = "shard"`.

        Raises:
            ValueError: The source is no module in eval mode whose logits have a gradient, or images, labels or keys
                have another shape, dtype or range.
            FloatingPointError: A gradient was not finite.
        """
        require_module(self.source)
        require_usable(self.source)
        with torch.inference_mode(False), torch.enable_grad():
            given = as_images(images)
            device = device_of(self.source) or given.device
            classes = as_classes("labels", labels, len(given)).to(device)
            keys = as_keys(keys, len(given))
            aims = None if target_classes is None else as_classes("target_classes", target_classes, len(given))
            self._require_aims(aims)
            if not len(given):
                return given.clone()
            aims = None if aims is None else aims.to(device)
            with torch.autocast(device.type, enabled=False):
                return self._attack(given.to(device), classes, keys, aims).to(given.device)

    def _attack(self, images: Tensor, labels: Tensor, keys: Sequence[str], aims: Tensor | None) -> Tensor:
        """Attacks images that have been checked, on the source's device."""
        largest = max(int(classes.max()) for classes in (labels, aims) if classes is not None)
        source = as_source(self.source, largest)
        aims = self.attack.target_classes(source, images, labels, keys, aims)
        adversarial = self.attack(source, images, labels, keys, target_classes=aims)
        if isinstance(self.attack, Iterative):
            start = self.attack.start(images, Draws(self.attack.seed, keys, images.device))
            if torch.equal(adversarial, start):
                require_gradient(source, images)
        return adversarial

    def _require_aims(self, target_classes: Tensor | None) -> None:
        if (target_classes is not None) != (self.attack.target_class == "shard"):
            raise ValueError(
                "target_classes are required by an attack built with target_class = 'shard', and taken by no other"
            )


def build(
    combination: str,
    source: nn.Module,
    *,
    epsilon: float | str | Fraction = "16/255",
    steps: int | None = None,
    step_size: float | str | Fraction | None = None,
    decay: float | None = None,
    norm: BallNorm = "linf",
    loss: Loss | None = None,
    target_class: TargetClass | None = None,
    parts: Mapping[str, Any] | None = None,
    seed: int = 0,
    precision: Precision | Literal["auto"] | None = None,
    name: str = "",
    **part_settings: Mapping[str, Any],
) -> BoundAttack:
    """Builds an attack from a combination such as `gnp+mi+di`, with published defaults, on a source model.

    Args:
        combination: As in a recipe: a base and any parts, joined by `+`.
        source: Maps images (B, C, H, W) in [0, 1] to logits (B, classes); in eval mode.
        epsilon: Budget on [0, 1]: `16 / 255`, `"16/255"`.
        steps: T; 10 by default.
        step_size: α; ε/T by default.
        decay: μ; by default that of the base.
        norm: `linf` or `l2`.
        loss: `cross-entropy`, `logit` or `margin`.
        target_class: Of a targeted attack: `shard` (given in each call), `random`, `least-likely` or a class.
        parts: Parts of the combination with other settings than the published ones, as instances.
        seed: Seed of all draws.
        precision: Precision of the source's gradients: `float32`, `tf32`, `bfloat16` or `auto`.
        name: Name in results; by default the combination.
        **part_settings: Settings of a part, as in a recipe: `gnp={"form": "backward", "r": "1/255"}`.

    Raises:
        ValueError: The combination or a setting is unknown, or a value has another type or is out of range.
    """
    require_module(source)
    hints = get_type_hints(recipe.build)
    own = {"epsilon": epsilon, "steps": steps, "step_size": step_size, "decay": decay, "norm": norm, "loss": loss}
    own |= {"target_class": target_class, "seed": seed, "precision": precision, "name": name}
    values = {key: convert(key, value, hints[key]) for key, value in own.items()}
    kinds = {**INPUT_TRANSFORMS, **GRADIENT_TRANSFORMS}
    for part in part_settings:
        require_known(part, [*own, "parts", *kinds])
    chosen = {**(parts or {}), **part_settings}
    for part in chosen:
        require_known(part, kinds, place="parts.")
    built = {part: build_part(part, kinds[part], settings) for part, settings in chosen.items()}
    return BoundAttack(recipe.build(convert("attack", combination, str), parts=built, **values), source)
