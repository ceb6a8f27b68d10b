"""Finds modules whose output is exactly another module's input, by calling the network: any architecture will do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Producer = TypeVar("Producer", bound=nn.Module)
Consumer = TypeVar("Consumer", bound=nn.Module)

# Relative to the largest logit. Rounding moves logits by some 1e-6 of it; another function moves them by all of it.
_TOLERANCE = 1e-3


def trial_image(network: nn.Module, side: int) -> Tensor:
    """An image (1, 3, side, side) to try the network on, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, side, side, generator=generator, dtype=next(network.parameters()).dtype)


def find_pairs(
    network: nn.Module, producers: list[Producer], consumers: list[Consumer], images: Tensor
) -> list[tuple[Producer, Consumer]]:
    """Pairs of modules that are called once each, the consumer on the producer's unchanged output.

    Other uses of the producer's output do not show here; `outputs_agree` shows them once the modules are replaced.
    """
    outputs: list[tuple[Producer, Tensor, int]] = []
    inputs: list[tuple[Consumer, Tensor, int]] = []

    def note_output(module: Any, _: Any, output: Tensor) -> None:
        outputs.append((module, output, output._version))

    def note_input(module: Any, arguments: tuple[Tensor, ...]) -> None:
        inputs.append((module, arguments[0], arguments[0]._version))

    with torch.no_grad(), _temporary_hooks() as hooks:
        hooks += [producer.register_forward_hook(note_output) for producer in producers]
        hooks += [consumer.register_forward_pre_hook(note_input) for consumer in consumers]
        network(images)
    calls: list[nn.Module] = [module for module, _, _ in (*outputs, *inputs)]
    pairs = [
        (producer, consumer)
        for producer, output, output_version in outputs
        for consumer, consumed, input_version in inputs
        if consumed is output and input_version == output_version
    ]
    return [pair for pair in pairs if all(calls.count(module) == 1 for module in pair)]


def replace_modules(network: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Replaces modules of a network in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if child in replacements:
                setattr(module, name, replacements[child])


def outputs_agree(expected: nn.Module, changed: nn.Module, images: Tensor) -> bool:
    """Whether a changed network gives the same outputs on the images, except for rounding."""
    with torch.no_grad():
        expected_output = expected(images)
        changed_output = changed(images)
    return bool((changed_output - expected_output).abs().max() <= _TOLERANCE * expected_output.abs().max())


@contextmanager
def _temporary_hooks() -> Iterator[list[Any]]:
    hooks: list[Any] = []
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()
