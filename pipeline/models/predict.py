"""Predictions of a model, with or without defenses, on stored pixels."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.attack.draws import Draws
from pipeline.data import codec
from pipeline.models.batch_size import run_in_batches
from pipeline.models.defenses import RandomisedSmoothing, ReadyDefense


@dataclass(frozen=True)
class BatchPredictions:
    """A model's predictions on a batch of images.

    Attributes:
        prediction: The argmax, (B,) int64 on the CPU.
        label_probability: The softmax at the label, (B,) float32 on the CPU; its mean over several forward passes, or
            the share of the votes of randomised smoothing.
        abstained: Whether randomised smoothing abstains, (B,) bool; `prediction` is then the leading class.
        batch_size: Number of images at a time that fitted into the device's memory.
    """

    prediction: Tensor
    label_probability: Tensor
    abstained: Tensor
    batch_size: int


class DefendedNetwork(Protocol):
    """A network whose input defenses can change between resizing and classification."""

    def resized(self, images: Tensor) -> Tensor:
        """Images in [0, 1] at the network's input size."""
        ...

    def classify(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) of resized images."""
        ...


def require_finite(logits: Tensor, name: str) -> Tensor:
    """Returns logits (B, classes), of which an argmax or a vote would hide that they are not numbers.

    Raises:
        FloatingPointError: Some are NaN or infinite; names the model.
    """
    finite = logits.isfinite().all(dim=1)
    if not finite.all():
        raise FloatingPointError(
            f"{name}: its logits are not finite on {int((~finite).sum())} of {len(logits)} images; see its checkpoint, "
            "mean, std and args, or leave the model out"
        )
    return logits


def predict_defended(
    network: DefendedNetwork,
    images: Tensor,
    defenses: Sequence[ReadyDefense],
    draws: Draws,
    *,
    name: str = "the model",
) -> tuple[Tensor, Tensor]:
    """Class probabilities of a network behind defenses.

    Args:
        network: The network.
        images: (B, 3, H, W) float32 in [0, 1].
        defenses: In order; those of the input are applied after those of the image.
        draws: Random numbers of these images.
        name: The model's name, for messages.

    Returns:
        Mean probabilities, or shares of votes, (B, classes); and whether the defense abstains, (B,) bool.

    Raises:
        FloatingPointError: The logits of some image and forward pass are not finite.
    """
    smoothing = next((defense for defense in defenses if isinstance(defense, RandomisedSmoothing)), None)
    total: Tensor | float = 0.0
    for number, _ in enumerate(itertools.product(*(range(defense.forward_passes) for defense in defenses))):
        draws.begin_step(number)
        logits = require_finite(_defended_forward(network, images, defenses, draws), name)
        probabilities = logits.softmax(dim=1)
        if smoothing:
            votes = F.one_hot(probabilities.argmax(dim=1), probabilities.shape[1])
            total = total + votes.to(probabilities)
        else:
            total = total + probabilities
    assert isinstance(total, Tensor)
    never = torch.zeros(len(images), dtype=torch.bool)
    passes = math.prod(defense.forward_passes for defense in defenses)
    return total / passes, smoothing.abstains(total) if smoothing else never


def _defended_forward(
    network: DefendedNetwork, images: Tensor, defenses: Sequence[ReadyDefense], draws: Draws
) -> Tensor:
    """Logits (B, classes) of one forward pass."""
    for defense in defenses:
        if defense.applies_to == "image":
            images = defense(images, draws)
    inputs = network.resized(images)
    for defense in defenses:
        if defense.applies_to == "input":
            inputs = defense(inputs, draws)
    return network.classify(inputs)


@dataclass(frozen=True)
class SeededDefenses:
    """A target's defenses with the seed and the image keys of their random draws.

    Attributes:
        chain: The defenses, in order.
        seed: Seed of their random draws.
        keys: The images' keys, N of them.
    """

    chain: Sequence[ReadyDefense]
    seed: int
    keys: Sequence[str]

    def predict(
        self, model: DefendedNetwork, images: Tensor, batch: slice, *, name: str = "the model"
    ) -> tuple[Tensor, Tensor]:
        """Probabilities (B, classes) of the images of a batch, and whether the defense abstains, (B,) bool."""
        draws = Draws(self.seed, self.keys[batch], images.device, purpose="defense")
        return predict_defended(model, images, self.chain, draws, name=name)


def predict_probabilities(
    model: nn.Module,
    pixels: Tensor,
    batch: slice,
    *,
    device: torch.device,
    defenses: SeededDefenses | None,
    name: str = "the model",
) -> tuple[Tensor, Tensor]:
    """Probabilities (B, classes) of a batch, in one call of the model, and whether a defense abstains, (B,).

    Args:
        model: On `device`.
        pixels: The batch's images, (B, 3, H, W) uint8 on the CPU.
        batch: Which of the images that `defenses` has keys of.
        device: The model's device.
        defenses: The model's defenses.
        name: The model's name, for messages.

    Raises:
        FloatingPointError: The logits of some image are not finite.
    """
    images = codec.to_float(pixels.to(device))
    if defenses is None or not defenses.chain:
        return require_finite(model(images), name).softmax(dim=1), torch.zeros(len(images))
    return defenses.predict(cast("DefendedNetwork", model), images, batch, name=name)


def predict(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    defenses: SeededDefenses | None = None,
    name: str = "the model",
) -> BatchPredictions:
    """A model's predictions on uint8 pixels.

    Args:
        model: Maps images (B, 3, H, W) float32 in [0, 1] to logits (B, classes); on `device`.
        pixels: (N, 3, H, W) uint8 on the CPU.
        labels: (N,) int64 on the CPU, true classes.
        batch_size: Images at a time; fewer where memory runs out.
        device: The model's device.
        defenses: The model's defenses.
        name: The model's name, for messages.

    Raises:
        FloatingPointError: The logits of some image are not finite.
    """

    def predict_batch(batch: slice) -> Tensor:
        probability, abstained = predict_probabilities(
            model, pixels[batch], batch, device=device, defenses=defenses, name=name
        )
        probability = probability.cpu()
        at_label = probability.gather(1, labels[batch].view(-1, 1)).squeeze(1)
        return torch.stack([probability.argmax(dim=1).double(), at_label.double(), abstained.double()])

    with torch.inference_mode():
        batches, fitting_size = run_in_batches(predict_batch, len(pixels), batch_size)
    classes, at_labels, abstained = torch.cat([torch.empty(3, 0, dtype=torch.float64), *batches], dim=1)
    return BatchPredictions(classes.long(), at_labels.float(), abstained.bool(), fitting_size)
