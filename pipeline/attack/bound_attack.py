"""An attack bound to a source model: maps images and labels to adversarial images."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.attack import recipe
from pipeline.attack.recipe import Attack

# A float such as 16/255 stands for the nearest fraction up to this denominator.
_LARGEST_DENOMINATOR = 1_000_000


@dataclass(frozen=True)
class BoundAttack:
    """An attack on one source model.

    Attributes:
        attack: The attack.
        source: The model attacked, or an `Ensemble`.
    """

    attack: Attack
    source: nn.Module

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        keys: Sequence[str] | None = None,
        target_classes: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images, (B, 3, H, W) float32 in [0, 1], within ε of `images` up to float rounding.

        Args:
            images: (B, 3, H, W) float32 in [0, 1], on the source's device.
            labels: (B,) int64, the true classes.
            keys: Keys that an image's random draws depend on; by default its index in the batch.
            target_classes: (B,) int64, required if the attack was built with `target_class = "shard"`.

        Raises:
            ValueError: The source is in training mode, or images or labels have another shape, dtype or range.
            FloatingPointError: A gradient was not finite.
        """
        self._check(images, labels, target_classes)
        keys = [str(index) for index in range(len(images))] if keys is None else keys
        target_classes = self.attack.target_classes(self.source, images, labels, keys, target_classes)
        return self.attack(self.source, images, labels, keys, target_classes=target_classes)

    def _check(self, images: Tensor, labels: Tensor, target_classes: Tensor | None) -> None:
        if self.source.training:
            raise ValueError(
                "the source is in training mode, in which images of a batch influence each other: source.eval()"
            )
        if images.ndim != 4 or not images.is_floating_point() or bool(((images < 0) | (images > 1)).any()):
            least, most = float(images.min()), float(images.max())
            raise ValueError(
                f"images are {tuple(images.shape)} {images.dtype} in [{least:.3g}, {most:.3g}]: "
                "expected (B, 3, H, W) float in [0, 1]; a source that needs normalised images normalises them itself"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(f"labels are {tuple(labels.shape)} {labels.dtype}: expected ({len(images)},) int64")
        if (target_classes is not None) != (self.attack.target_class == "shard"):
            raise ValueError(
                "target_classes are required by an attack built with target_class = 'shard', and taken by no other"
            )


def build(
    combination: str, source: nn.Module, *, epsilon: float | str | Fraction = "16/255", **settings: Any
) -> BoundAttack:
    """Builds an attack from a combination such as `gnp+mi+di`, with published defaults, on a source model.

    Args:
        combination: As in `pipeline.attack.recipe.build`.
        source: Maps images (B, 3, H, W) in [0, 1] to logits (B, classes); in eval mode.
        epsilon: Budget on [0, 1]: `16 / 255`, `"16/255"`.
        **settings: `steps`, `step_size`, `norm`, `parts` and the others of `pipeline.attack.recipe.build`.

    Raises:
        ValueError: The combination is unknown, or a number is out of range.
    """
    if isinstance(settings.get("step_size"), (float, str)):
        settings["step_size"] = _fraction(settings["step_size"])
    return BoundAttack(recipe.build(combination, epsilon=_fraction(epsilon), **settings), source)


def _fraction(value: float | str | Fraction) -> Fraction:
    try:
        return Fraction(value).limit_denominator(_LARGEST_DENOMINATOR)
    except (OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{value!r} is not a finite number") from error
