"""Scoring: a target's predictions on stored pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.attack.draws import Draws
from pipeline.data import codec
from pipeline.models import batch_size as batches
from pipeline.models.defenses import Network, Ready, answer


@dataclass(frozen=True)
class Predictions:
    """What a model says of a batch of images.

    Attributes:
        prediction: The argmax, (B,) int64 on the CPU.
        label_probability: The softmax at the label, (B,) float32 on the CPU; behind a defense that answers several
            times its mean, and behind randomised smoothing the share of the votes.
        abstained: Where randomised smoothing does not answer, (B,) bool; `prediction` is then the class ahead.
        batch_size: How many images at a time fitted into the device's memory.
    """

    prediction: Tensor
    label_probability: Tensor
    abstained: Tensor
    batch_size: int


@dataclass(frozen=True)
class Behind:
    """The defenses that a target is behind, and what they draw for which images.

    Attributes:
        defenses: In order.
        seed: Of what they draw.
        keys: The images' keys, N of them.
    """

    defenses: Sequence[Ready]
    seed: int
    keys: Sequence[str]

    def answer(self, model: Network, images: Tensor, batch: slice) -> tuple[Tensor, Tensor]:
        """Probabilities (B, classes) of some of the images, and where it abstains, (B,) bool."""
        return answer(
            model, images, self.defenses, Draws(self.seed, self.keys[batch], images.device, purpose="defense")
        )


def ask(
    model: nn.Module, pixels: Tensor, batch: slice, *, device: torch.device, behind: Behind | None
) -> tuple[Tensor, Tensor]:
    """Probabilities (B, classes) of images (B, 3, H, W) uint8, all at once, and where a defense abstains, (B,).

    Args:
        model: On `device`.
        pixels: On the CPU.
        batch: Which of the images that the defenses have keys of.
        device: Where the model lies.
        behind: Its defenses.
    """
    images = codec.to_float(pixels.to(device))
    if behind is None or not behind.defenses:
        return model(images).softmax(dim=1), torch.zeros(len(images))
    return behind.answer(cast("Network", model), images, batch)


def predict(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    behind: Behind | None = None,
) -> Predictions:
    """A model's predictions on uint8 pixels.

    Args:
        model: Maps images (B, 3, H, W) float32 in [0, 1] to logits (B, classes); on `device`.
        pixels: (N, 3, H, W) uint8 on the CPU.
        labels: (N,) int64 on the CPU, true classes.
        batch_size: Images at a time; fewer where they do not fit.
        device: Where the model lies.
        behind: Its defenses.
    """

    def predict_batch(batch: slice) -> Tensor:
        probability, abstained = ask(model, pixels[batch], batch, device=device, behind=behind)
        probability = probability.cpu()
        at_label = probability.gather(1, labels[batch].view(-1, 1)).squeeze(1)
        return torch.stack([probability.argmax(dim=1).double(), at_label.double(), abstained.double()])

    with torch.inference_mode():
        made, fitted = batches.run(predict_batch, len(pixels), batch_size)
    predictions, at_labels, abstained = torch.cat([torch.empty(3, 0, dtype=torch.float64), *made], dim=1)
    return Predictions(predictions.long(), at_labels.float(), abstained.bool(), fitted)
