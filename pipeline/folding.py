"""Batch norms folded into the convolutions before them: one pass over memory less, forward and backward.

In eval mode a batch norm is an affine map of each channel, and a convolution followed by one is a convolution:

    γ·(w ∗ x + b − μ)/√(σ² + ε) + β  =  w′ ∗ x + b′,    w′ = w·γ/√(σ² + ε),   b′ = (b − μ)·γ/√(σ² + ε) + β
"""

import copy
import logging
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

log = logging.getLogger(__name__)

# Of the largest logit. Rounding moves them by some 1e-6 of it; what does not fold moves them by all of it.
_TOLERANCE = 1e-3


def folded(network: nn.Module, side: int) -> nn.Module:
    """The network with every batch norm folded that takes what a convolution gives, and nothing else does.

    Which those are shows when it is called: no names and no graph are needed, so that any architecture will do. Then it
    is held against the network as it was; where the two differ by more than rounding, nothing is folded.

    Args:
        network: In eval mode, on the CPU; left as it is.
        side: Of the images that it is tried on.
    """
    generator, dtype = torch.Generator().manual_seed(0), next(network.parameters()).dtype
    images = torch.randn(1, 3, side, side, generator=generator, dtype=dtype)
    made = copy.deepcopy(network)
    with torch.inference_mode():
        before, pairs = _watched(made, images)
    if not pairs:
        return network
    instead: dict[nn.Module, nn.Module] = {}
    for convolution, norm in pairs:
        _fold(convolution, norm)
        instead[norm] = _rest(norm)
    _replace(made, instead)
    made.requires_grad_(False).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        after = made(images)
    if (after - before).abs().max() > _TOLERANCE * before.abs().max():
        log.warning("%s: its batch norms do not fold", type(network).__name__)
        return network
    return made


def _watched(network: nn.Module, images: Tensor) -> tuple[Tensor, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """What the network answers, and which batch norms were given just what a convolution made, each once."""
    made: list[tuple[nn.Conv2d, Tensor]] = []
    taken: list[tuple[nn.BatchNorm2d, Tensor]] = []

    def note_made(module: nn.Module, _: Any, output: Tensor) -> None:
        made.append((cast("nn.Conv2d", module), output))

    def note_taken(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taken.append((cast("nn.BatchNorm2d", module), inputs[0]))

    hooks = [each.register_forward_hook(note_made) for each in network.modules() if isinstance(each, nn.Conv2d)]
    hooks += [
        each.register_forward_pre_hook(note_taken)
        for each in network.modules()
        if isinstance(each, nn.BatchNorm2d) and each.running_mean is not None
    ]
    answer = network(images)
    for hook in hooks:
        hook.remove()
    calls = [module for module, _ in (*made, *taken)]
    pairs = [(by, norm) for by, output in made for norm, taken_in in taken if taken_in is output]
    return answer, [pair for pair in pairs if all(calls.count(module) == 1 for module in pair)]


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    statistics = (norm.running_mean.double(), norm.running_var.double(), norm.eps)
    weight, bias = (None if each is None else each.double() for each in (convolution.weight, convolution.bias))
    scale, shift = (None if each is None else each.double() for each in (norm.weight, norm.bias))
    assert weight is not None
    weight, bias = fuse_conv_bn_weights(weight, bias, *statistics, scale, shift)
    dtype = convolution.weight.dtype
    convolution.weight, convolution.bias = nn.Parameter(weight.to(dtype)), nn.Parameter(bias.to(dtype))


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """What a batch norm does beside: timm has some that drop out and activate as well."""
    return nn.Sequential(*norm.children()) if len(list(norm.children())) else nn.Identity()


def _replace(network: nn.Module, instead: dict[nn.Module, nn.Module]) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if child in instead:
                setattr(module, name, instead[child])
