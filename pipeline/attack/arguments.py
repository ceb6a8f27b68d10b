"""What a caller passes to an attack, as the tensors that it works on: images, classes and keys."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Colour channels of an image whose channels come last.
_CHANNELS = (1, 3, 4)


def as_images(images: Any) -> Tensor:
    """Images without the caller's graph, (B, C, H, W) float32, or float64 if they are, in [0, 1].

    Raises:
        ValueError: They have another shape, dtype or range.
    """
    tensor = _as_tensor("images", images)
    if not _is_batch(tensor) or not tensor.is_floating_point():
        raise ValueError(
            f"images are {tuple(tensor.shape)} {tensor.dtype}: expected (B, C, H, W) float in [0, 1]; "
            f"{_shape_remedy(tensor)}"
        )
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    if not bool(((tensor >= 0) & (tensor <= 1)).all()):  # NaN is neither
        least, most = float(tensor.min()), float(tensor.max())
        raise ValueError(
            f"images are {tuple(tensor.shape)} {tensor.dtype} in [{least:.7g}, {most:.7g}]: expected (B, C, H, W) "
            f"float in [0, 1]; {_range_remedy(least, most)}"
        )
    return tensor.clone() if tensor.is_inference() else tensor


def as_classes(name: str, classes: Any, count: int) -> Tensor:
    """Classes of `count` images, (B,) int64.

    Raises:
        ValueError: They have another shape or dtype, or one is negative.
    """
    tensor = _as_tensor(name, classes)
    if not count and not tensor.numel():
        return torch.empty(0, dtype=torch.int64, device=tensor.device)
    if tensor.shape != (count,) or tensor.dtype not in _WHOLE:
        remedy = _classes_remedy(name, tensor) if tensor.ndim and len(tensor) == count else ""
        raise ValueError(f"{name} are {tuple(tensor.shape)} {tensor.dtype}: expected ({count},) int64{remedy}")
    tensor = tensor.to(torch.int64)
    if bool((tensor < 0).any()):
        index = int((tensor < 0).int().argmax())
        raise ValueError(f"{name}: {int(tensor[index])} of image {index}: classes count from 0")
    return tensor.clone() if tensor.is_inference() else tensor


def as_keys(keys: Iterable[Any] | None, count: int) -> Sequence[str]:
    """Keys of `count` images, by default their indices.

    Raises:
        ValueError: They are another number, repeated, or neither texts nor whole numbers.
    """
    if keys is None:
        return [str(index) for index in range(count)]
    listed = [keys] if isinstance(keys, str) else list(keys)
    if len(listed) != count or not all(isinstance(key, (str, int)) for key in listed):
        kinds = ", ".join(sorted({type(key).__name__ for key in listed}))
        raise ValueError(f"keys are {len(listed)} of type {kinds or 'none'}: expected {count} texts, one per image")
    texts = [str(key) for key in listed]
    repeated = next((key for key, times in Counter(texts).items() if times > 1), None)
    if repeated is not None:
        raise ValueError(f"keys: {repeated!r} comes twice: images of one key would get the same random numbers")
    return texts


def _as_tensor(name: str, value: Any) -> Tensor:
    """A tensor, an array, or a list of either, as a tensor without a graph."""
    try:
        return _joined(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{name} are a {type(value).__name__} of which no tensor can be made ({reason}); pass a tensor or an array"
        ) from error


def _joined(value: Any) -> Tensor:
    if isinstance(value, (list, tuple)):
        return torch.stack(list(map(_joined, value))) if value else torch.empty(0)
    return value.detach() if isinstance(value, Tensor) else torch.tensor(value)


def _is_batch(images: Tensor) -> bool:
    channels_last = images.ndim == 4 and images.shape[3] in _CHANNELS and images.shape[1] not in _CHANNELS
    return images.ndim == 4 and 0 not in images.shape[1:] and not channels_last


def _classes_remedy(name: str, classes: Tensor) -> str:
    if classes.ndim == 1:
        return f"; {name}.long()"
    return f"; {name}.flatten()" if classes.shape[1:].numel() == 1 else f"; of one-hot rows, {name}.argmax(1)"


def _shape_remedy(images: Tensor) -> str:
    if images.ndim == 3:
        return "one image is a batch as images[None]"
    if images.ndim == 4 and images.numel() and not _is_batch(images):
        return "with channels last, images.permute(0, 3, 1, 2)"
    return "of bytes, images.float() / 255" if images.dtype in _WHOLE else "stack the images of a batch"


def _range_remedy(least: float, most: float) -> str:
    if least != least or most != most:
        return "some are NaN"
    if least > -0.01 and most < 1.01:
        return "images.clamp(0, 1)"
    if least >= 0 and most <= 255:
        return "of bytes, images / 255"
    if least >= -1 and most <= 1:
        return "of [-1, 1], (images + 1) / 2, and a source that takes [0, 1]"
    return "a source that needs normalised images normalises them itself"
