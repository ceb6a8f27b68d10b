"""Cost of an attack in gradients per image, counted before it runs."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.attack.batch import AdmixPool, GradientCounter
from pipeline.attack.loop import Iterative
from pipeline.attack.recipe import Attack

# Steps that are counted; the cost of more is extrapolated.
_COUNTED_STEPS = 20


def gradients_per_image(attack: Attack) -> int:
    """Number of gradients of one source per image: counted on a trivial model, not looked up in a table."""
    counted = replace(attack, steps=min(attack.steps, _COUNTED_STEPS)) if isinstance(attack, Iterative) else attack
    counter = GradientCounter()
    images = torch.full((1, 3, 16, 16), 0.5)
    labels = torch.zeros(1, dtype=torch.int64)
    counted(
        _SquaredColourMeans(),
        images,
        labels,
        ["x"],
        target_classes=labels,
        pool=AdmixPool(images, labels),
        counter=counter,
    )
    factor = attack.steps / min(attack.steps, _COUNTED_STEPS) if isinstance(attack, Iterative) else 1
    return round(counter.gradients * factor)


class _SquaredColourMeans(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3): the means of the colours, squared so that they have a second derivative."""
        return images.mean(dim=(2, 3)) ** 2
