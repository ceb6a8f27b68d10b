"""Which modules of a network hand what to which: seen by calling it, so that any architecture will do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Giver = TypeVar("Giver", bound=nn.Module)
Taker = TypeVar("Taker", bound=nn.Module)

# Of the largest logit. Rounding moves them by some 1e-6 of it; what is not the same function moves them by all of it.
_TOLERANCE = 1e-3


def trial(network: nn.Module, side: int) -> Tensor:
    """An image (1, 3, side, side) that the network is tried on, always the same."""
    generator, dtype = torch.Generator().manual_seed(0), next(network.parameters()).dtype
    return torch.randn(1, 3, side, side, generator=generator, dtype=dtype)


def pairs(network: nn.Module, givers: list[Giver], takers: list[Taker], images: Tensor) -> list[tuple[Giver, Taker]]:
    """Givers and takers that are called once each, the taker on what the giver made, untouched in between.

    Whether nobody else takes it as well does not show here, but in what the network answers afterwards: `agree`.
    """
    made: list[tuple[Giver, Tensor, int]] = []
    taken: list[tuple[Taker, Tensor, int]] = []

    def note_made(module: Any, _: Any, output: Tensor) -> None:
        made.append((module, output, output._version))

    def note_taken(module: Any, inputs: tuple[Tensor, ...]) -> None:
        taken.append((module, inputs[0], inputs[0]._version))

    with torch.no_grad(), _removed_after() as hooks:
        hooks += [giver.register_forward_hook(note_made) for giver in givers]
        hooks += [taker.register_forward_pre_hook(note_taken) for taker in takers]
        network(images)
    calls: list[nn.Module] = [module for module, _, _ in (*made, *taken)]
    found = [
        (giver, taker)
        for giver, output, was in made
        for taker, taken_in, is_now in taken
        if taken_in is output and is_now == was
    ]
    return [pair for pair in found if all(calls.count(module) == 1 for module in pair)]


def replace(network: nn.Module, instead: dict[nn.Module, nn.Module]) -> None:
    """Puts other modules in place of some, wherever they stand."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if child in instead:
                setattr(module, name, instead[child])


def agree(network: nn.Module, other: nn.Module, images: Tensor) -> bool:
    """Whether both answer the same on the images, but for rounding."""
    with torch.no_grad():
        expected, found = network(images), other(images)
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


@contextmanager
def _removed_after() -> Iterator[list[Any]]:
    hooks: list[Any] = []
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()
