"""Scoring: a target's predictions on stored pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline import batches, codec


@dataclass(frozen=True)
class Predictions:
    """What a model says of a batch of images.

    Attributes:
        prediction: The argmax, (B,) int64 on the CPU.
        label_probability: The softmax at the label, (B,) float32 on the CPU.
        batch_size: How many images at a time fitted into the device's memory.
    """

    prediction: Tensor
    label_probability: Tensor
    batch_size: int


def predict(model: nn.Module, pixels: Tensor, labels: Tensor, *, batch_size: int, device: torch.device) -> Predictions:
    """A model's predictions on uint8 pixels.

    Args:
        model: Maps images (B, 3, H, W) float32 in [0, 1] to logits (B, classes); on `device`.
        pixels: (N, 3, H, W) uint8 on the CPU.
        labels: (N,) int64 on the CPU, true classes.
        batch_size: Images at a time; fewer where they do not fit.
        device: Where the model lies.
    """

    def predict_batch(batch: slice) -> Tensor:
        probability = model(codec.to_float(pixels[batch].to(device))).softmax(dim=1).cpu()
        at_label = probability.gather(1, labels[batch].view(-1, 1)).squeeze(1)
        return torch.stack([probability.argmax(dim=1).double(), at_label.double()])

    with torch.inference_mode():
        made, fitted = batches.run(predict_batch, len(pixels), batch_size)
    predictions, at_labels = torch.cat([torch.empty(2, 0, dtype=torch.float64), *made], dim=1)
    return Predictions(predictions.long(), at_labels.float(), fitted)
