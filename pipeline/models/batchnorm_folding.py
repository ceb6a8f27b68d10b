"""Folds batch norms into the convolutions before them: one pass over memory less, forward and backward.

In eval mode a batch norm is an affine map of each channel, and a convolution followed by one is a convolution:

    γ·(w ∗ x + b − μ)/√(σ² + ε) + β  =  w′ ∗ x + b′,    w′ = w·γ/√(σ² + ε),   b′ = (b − μ)·γ/√(σ² + ε) + β
"""

import copy
import logging

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.models.module_pairs import find_pairs, outputs_agree, replace_modules, trial_image

log = logging.getLogger(__name__)


def fold_batchnorms(network: nn.Module, side: int) -> nn.Module:
    """A copy of a network with every batch norm folded that is the only consumer of a convolution's output.

    The pairs are found by calling the network, without names or a graph, so any architecture will do. Then the copy is
    compared with the network; where the two differ by more than rounding, the network itself is returned.

    Args:
        network: In eval mode, on the CPU; not changed.
        side: Side of the trial image in pixels.
    """
    folded = copy.deepcopy(network)
    images = trial_image(network, side)
    convolutions = [module for module in folded.modules() if isinstance(module, nn.Conv2d)]
    norms = [
        module for module in folded.modules() if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    ]
    pairs = find_pairs(folded, convolutions, norms, images)
    if not pairs:
        return network
    for convolution, norm in pairs:
        _fold_into(convolution, norm)
    replace_modules(folded, {norm: _without_norm(norm) for _, norm in pairs})
    folded.requires_grad_(False).to(memory_format=torch.channels_last)
    if not outputs_agree(network, folded, images):
        log.warning("%s: its batch norms cannot be folded", type(network).__name__)
        return network
    return folded


def _fold_into(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    statistics = (norm.running_mean.double(), norm.running_var.double(), norm.eps)
    weight, bias = _in_double(convolution.weight), _in_double(convolution.bias)
    scale, shift = _in_double(norm.weight), _in_double(norm.bias)
    assert weight is not None
    weight, bias = fuse_conv_bn_weights(weight, bias, *statistics, scale, shift)
    dtype = convolution.weight.dtype
    convolution.weight = nn.Parameter(weight.to(dtype))
    convolution.bias = nn.Parameter(bias.to(dtype))


def _in_double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def _without_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """What a batch norm module does after normalising: some of timm's also drop out and activate."""
    return nn.Sequential(*norm.children()) if len(list(norm.children())) else nn.Identity()
