"""Several sources attacked as one."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Fuse = Literal["logits", "probabilities", "losses"]


class Ensemble(nn.Module):
    """Sources on one device whose answers, or losses, are averaged.

        logits           z̄ = mean of z_k, then the loss of z̄
        probabilities    p̄ = mean of softmax(z_k), then the loss of log p̄
        losses           the mean of the losses of z_k

    As a classifier it answers z̄, or log p̄ for `probabilities`.

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
        """Logits (B, classes)."""
        said = torch.stack([member(images) for member in self.members])
        if self.fuse == "probabilities":
            return said.log_softmax(dim=2).logsumexp(dim=0) - torch.tensor(len(said), device=said.device).log()
        return said.mean(dim=0)


@runtime_checkable
class Resizing(Protocol):
    """A network that brings images to its input size, and can be had for larger ones."""

    def enlarged(self, rate: float) -> nn.Module:
        """The same network, for an input `rate` times as large."""


def enlarged(model: nn.Module, rate: float) -> nn.Module:
    """A source, or each of an ensemble, for an input `rate` times as large; what does not resize takes any."""
    if rate == 1:
        return model
    if isinstance(model, Ensemble):
        return Ensemble([enlarged(member, rate) for member in model.members], model.fuse)
    return model.enlarged(rate) if isinstance(model, Resizing) else model


def members(model: nn.Module) -> int:
    """How many networks answer."""
    return len(model.members) if isinstance(model, Ensemble) else 1


def answers(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The logits whose losses are averaged: one (B, classes), or one of each member where losses are fused."""
    if isinstance(model, Ensemble) and model.fuse == "losses":
        return [member(images) for member in model.members]
    return [model(images)]
