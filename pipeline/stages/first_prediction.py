"""A source's predictions on clean images, taken from an attack's first forward pass where that is on these images."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def record_first_prediction(model: nn.Module, images: Tensor, predictions: Tensor) -> Iterator[None]:
    """Records a model's predictions if its first forward pass inside this context is on these very images.

    Logits that are not finite are not recorded.

    Args:
        model: Maps images (B, 3, H, W) to logits (B, classes).
        images: (B, 3, H, W), on the model's device.
        predictions: (B,) int64 on the CPU; overwritten with the predictions, or left as it is.
    """

    def record(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        if module is model:  # a network for larger inputs shares its hooks
            hook.remove()
            if torch.equal(inputs[0], images) and bool(logits.isfinite().all()):
                predictions.copy_(logits.detach().softmax(dim=1).argmax(dim=1))

    hook = model.register_forward_hook(record)
    try:
        yield
    finally:
        hook.remove()
