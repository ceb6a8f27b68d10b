"""What an attack raises: a loss at the label, or how close a class is that it wants."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["cross-entropy", "logit", "margin"]

# Maps logits (B, classes) to a scalar, summed over images, that the attack raises.
Objective = Callable[[Tensor], Tensor]


def objective(loss: Loss, labels: Tensor, target_classes: Tensor | None = None) -> Objective:
    """What is raised: away from the labels, or towards the wanted classes t where there are any.

        cross-entropy    −log p_y                   log p_t
        logit            −z_y                       z_t
        margin           max_{j≠y} z_j − z_y        z_t − max_{j≠t} z_j

    Args:
        loss: Which.
        labels: (B,) int64, true classes.
        target_classes: (B,) int64, the classes that a targeted attack wants.

    References:
        Zhao, Liu and Larson, "On Success and Simplicity: A Second Look at Transferable Targeted Attacks", NeurIPS 2021,
        arXiv 2012.11207, eq. 5 (logit loss).
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", arXiv 1608.04644, f₆ without its
        cut-off (margin).
    """
    classes = labels if target_classes is None else target_classes
    # What is said of a class is raised where it is wanted, lowered where it is the truth.
    sign = -1.0 if target_classes is None else 1.0

    def raised(logits: Tensor) -> Tensor:
        if loss == "cross-entropy":
            return -sign * F.cross_entropy(logits, classes, reduction="sum")
        own = logits.gather(1, classes.view(-1, 1)).squeeze(1)
        if loss == "logit":
            return sign * own.sum()
        rest = logits.scatter(1, classes.view(-1, 1), -torch.inf).amax(dim=1)
        return sign * (own - rest).sum()

    return raised
