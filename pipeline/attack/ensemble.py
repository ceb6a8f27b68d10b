"""An ensemble of source models that is attacked as one."""

import math
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Fuse = Literal["logits", "probabilities", "losses"]


class Ensemble(nn.Module):
    """Source models on one device whose logits, probabilities or losses are averaged.

        logits           z̄ = mean of z_k, then the loss of z̄
        probabilities    p̄ = mean of softmax(z_k), then the loss of log p̄
        losses           the mean of the losses of z_k

    As a classifier it returns z̄, or log p̄ for `probabilities`.

    Args:
        members: Each maps images (B, 3, H, W) in [0, 1] to logits (B, classes).
        fuse: What is averaged.

    References:
        Dong et al., "Boosting Adversarial Attacks with Momentum", arXiv 1710.06081, section 3.2 (all three).
    """

    def __init__(self, members: Sequence[nn.Module], fuse: Fuse = "logits") -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.fuse = fuse

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes).

        Raises:
            ValueError: The members differ in their classes.
        """
        answers = [member(images) for member in self.members]
        if len({answer.shape for answer in answers}) > 1:
            classes = ", ".join(str(answer.shape[-1]) for answer in answers)
            raise ValueError(f"the ensemble's members have {classes} classes: {self.fuse} of one number are averaged")
        logits = torch.stack(answers)
        if self.fuse == "probabilities":
            return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))
        return logits.mean(dim=0)


@runtime_checkable
class ResizableModel(Protocol):
    """A model that resizes images to its input size, and exists for larger input sizes."""

    def enlarged(self, rate: float) -> nn.Module:
        """The same network, for an input `rate` times as large."""


def enlarged(model: nn.Module, rate: float) -> nn.Module:
    """A source, or every member of an ensemble, for an input `rate` times as large.

    A model that is not a `ResizableModel` takes images of any size, and is returned as it is.
    """
    if rate == 1:
        return model
    if isinstance(model, Ensemble):
        return Ensemble([enlarged(member, rate) for member in model.members], model.fuse)
    return model.enlarged(rate) if isinstance(model, ResizableModel) else model


def member_count(model: nn.Module) -> int:
    """Number of networks that a forward pass evaluates."""
    return len(model.members) if isinstance(model, Ensemble) else 1


def logits_for_losses(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits (B, classes) whose losses are averaged: one per member if the ensemble fuses losses, otherwise one."""
    if isinstance(model, Ensemble) and model.fuse == "losses":
        return [member(images) for member in model.members]
    return [model(images)]
