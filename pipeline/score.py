"""Scoring: a target's predictions on stored pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline import codec


@dataclass(frozen=True)
class Predictions:
    """What a model says of a batch of images.

    Attributes:
        prediction: The argmax, (B,) int64 on the CPU.
        label_probability: The softmax at the label, (B,) float32 on the CPU.
    """

    prediction: Tensor
    label_probability: Tensor


def predict(model: nn.Module, pixels: Tensor, labels: Tensor, *, batch_size: int, device: torch.device) -> Predictions:
    """A model's predictions on uint8 pixels.

    Args:
        model: Maps images (B, 3, H, W) float32 in [0, 1] to logits (B, classes); on `device`.
        pixels: (N, 3, H, W) uint8 on the CPU.
        labels: (N,) int64 on the CPU, true classes.
        batch_size: Images at a time.
        device: Where the model lies.
    """
    predictions, probabilities = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    with torch.inference_mode():
        for start in range(0, len(pixels), batch_size):
            chunk, wanted = pixels[start : start + batch_size], labels[start : start + batch_size]
            probability = model(codec.to_float(chunk.to(device))).softmax(dim=1).cpu()
            predictions.append(probability.argmax(dim=1))
            probabilities.append(probability.gather(1, wanted.view(-1, 1)).squeeze(1))
    return Predictions(torch.cat(predictions), torch.cat(probabilities))
