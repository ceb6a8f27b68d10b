"""Objectives that an attack maximises: a loss at the true label, or minus the loss at a target class."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["cross-entropy", "logit", "margin"]

# Maps logits (B, classes) to a scalar, summed over images, that the attack maximises.
Objective = Callable[[Tensor], Tensor]


def objective(loss: Loss, labels: Tensor, target_classes: Tensor | None = None) -> Objective:
    """The objective to maximise: away from the labels y, or towards the target classes t if there are any.

        cross-entropy    −log p_y                   log p_t
        logit            −z_y                       z_t
        margin           max_{j≠y} z_j − z_y        z_t − max_{j≠t} z_j

    Args:
        loss: The loss.
        labels: (B,) int64, true classes.
        target_classes: (B,) int64, classes that a targeted attack aims at.

    References:
        Zhao, Liu and Larson, "On Success and Simplicity: A Second Look at Transferable Targeted Attacks", NeurIPS 2021,
        arXiv 2012.11207, eq. 5 (logit loss).
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", arXiv 1608.04644, f₆ without its
        cut-off (margin).
    """
    classes = labels if target_classes is None else target_classes
    # The score of a target class is raised, that of a true label is lowered.
    sign = -1.0 if target_classes is None else 1.0

    def maximised(logits: Tensor) -> Tensor:
        if loss == "cross-entropy":
            return -sign * F.cross_entropy(logits, classes, reduction="sum")
        # Not by `gather`, in whose gradient a GPU that adds in one order waits for the host.
        is_class = torch.arange(logits.shape[1], device=logits.device) == classes.view(-1, 1)
        class_logits = logits.masked_fill(~is_class, 0).sum(dim=1)
        if loss == "logit":
            return sign * class_logits.sum()
        best_rival = logits.masked_fill(is_class, -torch.inf).amax(dim=1)
        return sign * (class_logits - best_rival).sum()

    return maximised
