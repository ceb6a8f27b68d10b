"""Accuracy of a model on clean images, on stored adversarial images, and under a white-box attack."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.attack.recipe import Attack
from pipeline.data import codec
from pipeline.dataset.batch import Batch
from pipeline.results.intervals import Rate


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on one held-out set.

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


ZERO = Accuracy(Rate(0, 0), Rate(0, 0), Rate(0, 0))


def measure_transfer(model: nn.Module, batches: Iterable[Batch]) -> Accuracy:
    """Accuracy on stored adversarial images."""
    accuracy = ZERO
    for batch in batches:
        images, labels = _to_device(model, batch)
        accuracy += Accuracy(Rate(0, 0), _rate_correct(model, images, labels), Rate(0, 0))
    return accuracy


def measure_originals(model: nn.Module, batches: Iterable[Batch], attack: Attack) -> Accuracy:
    """Accuracy on clean images, and on the same images attacked on the model itself and rounded as they are stored."""
    accuracy = ZERO
    for batch in batches:
        images, labels = _to_device(model, batch)
        adversarial = attack(model, images, labels, batch["keys"])
        stored = codec.quantise(adversarial.cpu(), batch["images"], attack.epsilon, attack.norm)
        attacked = codec.to_float(stored.to(images.device))
        accuracy += Accuracy(_rate_correct(model, images, labels), Rate(0, 0), _rate_correct(model, attacked, labels))
    return accuracy


def to_counts(accuracies: Mapping[str, Accuracy]) -> dict[str, dict[str, list[int]]]:
    """[correct, total] of each held-out set and kind of image, as JSON values."""
    return {
        name: {kind: [rate.count, rate.n] for kind, rate in vars(accuracy).items()}
        for name, accuracy in accuracies.items()
    }


def _to_device(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in [0, 1] and labels (B,), on the model's device."""
    device = next(model.parameters()).device
    return codec.to_float(batch["images"].to(device)), batch["labels"].to(device)


def _rate_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Rate:
    model.eval()
    with torch.inference_mode():
        return Rate(int((model(images).argmax(dim=1) == labels).sum()), len(labels))
