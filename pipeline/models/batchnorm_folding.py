"""Batch norms folded into the convolutions before them: one pass over memory less, forward and backward.

In eval mode a batch norm is an affine map of each channel, and a convolution followed by one is a convolution:

    γ·(w ∗ x + b − μ)/√(σ² + ε) + β  =  w′ ∗ x + b′,    w′ = w·γ/√(σ² + ε),   b′ = (b − μ)·γ/√(σ² + ε) + β
"""

import copy
import logging

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.models import module_pairs

log = logging.getLogger(__name__)


def folded(network: nn.Module, side: int) -> nn.Module:
    """The network with every batch norm folded that takes what a convolution gives, and nothing else does.

    Which those are shows when it is called: no names and no graph are needed, so that any architecture will do. Then it
    is held against the network as it was; where the two differ by more than rounding, nothing is folded.

    Args:
        network: In eval mode, on the CPU; left as it is.
        side: Of the images that it is tried on.
    """
    made, images = copy.deepcopy(network), module_pairs.trial(network, side)
    convolutions = [each for each in made.modules() if isinstance(each, nn.Conv2d)]
    norms = [each for each in made.modules() if isinstance(each, nn.BatchNorm2d) and each.running_mean is not None]
    pairs = module_pairs.pairs(made, convolutions, norms, images)
    if not pairs:
        return network
    for convolution, norm in pairs:
        _fold(convolution, norm)
    module_pairs.replace(made, {norm: _rest(norm) for _, norm in pairs})
    made.requires_grad_(False).to(memory_format=torch.channels_last)
    if not module_pairs.agree(network, made, images):
        log.warning("%s: its batch norms do not fold", type(network).__name__)
        return network
    return made


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
