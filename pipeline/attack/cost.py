"""What an attack costs, known before it is made."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.attack.batch import Pool, Tally
from pipeline.attack.loop import Iterative
from pipeline.attack.recipe import Attack

# From so many steps on, each costs what it did before.
_STEPS = 20


def gradients(attack: Attack) -> int:
    """How many gradients of one source an image costs: counted on a model that is none, not looked up."""
    counted = replace(attack, steps=min(attack.steps, _STEPS)) if isinstance(attack, Iterative) else attack
    tally, images, labels = Tally(), torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, dtype=torch.int64)
    counted(_Nothing(), images, labels, ["x"], target_classes=labels, pool=Pool(images, labels), tally=tally)
    return round(tally.gradients * (attack.steps / min(attack.steps, _STEPS) if isinstance(attack, Iterative) else 1))


class _Nothing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3) that are the colours' means, squared so that they have a second derivative."""
        return images.mean(dim=(2, 3)) ** 2
