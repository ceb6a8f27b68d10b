"""How often a model is right: on clean images, on stored adversarial ones, and on those crafted against it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.attack.recipe import Attack
from pipeline.data import codec
from pipeline.dataset.examples import Batch
from pipeline.results.intervals import Rate


@dataclass(frozen=True)
class Accuracy:
    """Of one held-out set.

    Attributes:
        clean: On the originals, each once.
        transfer: On the stored adversarial images.
        white_box: On the originals, attacked on the model itself.
    """

    clean: Rate
    transfer: Rate
    white_box: Rate

    def __add__(self, other: "Accuracy") -> "Accuracy":
        return Accuracy(self.clean + other.clean, self.transfer + other.transfer, self.white_box + other.white_box)


NOTHING = Accuracy(Rate(0, 0), Rate(0, 0), Rate(0, 0))


def of_transfer(model: nn.Module, batches: Iterable[Batch]) -> Accuracy:
    """On stored adversarial images."""
    found = NOTHING
    for batch in batches:
        images, labels = _on_device(model, batch)
        found += Accuracy(Rate(0, 0), _right(model, images, labels), Rate(0, 0))
    return found


def of_originals(model: nn.Module, batches: Iterable[Batch], attack: Attack) -> Accuracy:
    """On clean images, and on the same attacked on the model itself, as they would be stored."""
    found = NOTHING
    for batch in batches:
        images, labels = _on_device(model, batch)
        crafted = attack(model, images, labels, batch["keys"])
        stored = codec.quantise(crafted.cpu(), batch["images"], attack.epsilon, attack.norm)
        attacked = codec.to_float(stored.to(images.device))
        found += Accuracy(_right(model, images, labels), Rate(0, 0), _right(model, attacked, labels))
    return found


def as_numbers(found: Mapping[str, Accuracy]) -> dict[str, dict[str, list[int]]]:
    """Counts and denominators, as JSON values."""
    return {name: {kind: [rate.count, rate.n] for kind, rate in vars(each).items()} for name, each in found.items()}


def _on_device(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    return codec.to_float(batch["images"].to(device)), batch["labels"].to(device)


def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Rate:
    model.eval()
    with torch.inference_mode():
        return Rate(int((model(images).argmax(dim=1) == labels).sum()), len(labels))
