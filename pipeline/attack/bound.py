"""An attack bound to a source: images and labels in, adversarial images out."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.attack import recipe
from pipeline.attack.recipe import Attack

# A float such as 16/255 stands for the fraction next to it.
_MOST_DENOMINATOR = 1_000_000


@dataclass(frozen=True)
class Bound:
    """An attack on one source.

    Attributes:
        attack: What is done.
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
            keys: What an image's random draws depend on; by default its place in the batch.
            target_classes: (B,) int64, wanted where the attack was built with `target_class = "shard"`.

        Raises:
            ValueError: The source is in training mode, or images or labels are not as said.
            FloatingPointError: A gradient was not finite.
        """
        if self.source.training:
            raise ValueError(
                "the source is in training mode, in which images of a batch influence each other: source.eval()"
            )
        if images.ndim != 4 or not images.is_floating_point() or bool(((images < 0) | (images > 1)).any()):
            least, most = float(images.min()), float(images.max())
            raise ValueError(
                f"images are {tuple(images.shape)} {images.dtype} in [{least:.3g}, {most:.3g}]: "
                "expected (B, 3, H, W) float in [0, 1]; a source that wants them normalised does so itself"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(f"labels are {tuple(labels.shape)} {labels.dtype}: expected ({len(images)},) int64")
        if (target_classes is not None) != (self.attack.target_class == "shard"):
            raise ValueError("target_classes go with an attack built with target_class = 'shard', and with no other")
        keys = [str(index) for index in range(len(images))] if keys is None else keys
        wanted = self.attack.target_classes(self.source, images, labels, keys, target_classes)
        return self.attack(self.source, images, labels, keys, target_classes=wanted)


def build(combination: str, source: nn.Module, *, epsilon: float | str | Fraction = "16/255", **settings: Any) -> Bound:
    """An attack that a combination such as `gnp+mi+di` names, with published defaults, bound to a source.

    Args:
        combination: As `pipeline.attack.recipe.build` has it.
        source: Maps images (B, 3, H, W) in [0, 1] to logits (B, classes); in eval mode.
        epsilon: The budget on [0, 1]: `16 / 255`, `"16/255"`.
        **settings: `steps`, `step_size`, `norm`, `parts` and the others of `pipeline.attack.recipe.build`.

    Raises:
        ValueError: The combination, or a number, cannot be.
    """
    if isinstance(settings.get("step_size"), (float, str)):
        settings["step_size"] = _fraction(settings["step_size"])
    return Bound(recipe.build(combination, epsilon=_fraction(epsilon), **settings), source)


def _fraction(value: float | str | Fraction) -> Fraction:
    try:
        return Fraction(value).limit_denominator(_MOST_DENOMINATOR)
    except (OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{value!r} is no number between pixels") from error
