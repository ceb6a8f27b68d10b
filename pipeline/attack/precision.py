"""Numeric precision of the source's forward and backward passes."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch

# TF32 keeps 10 of float32's 23 bits in products and convolutions, on NVIDIA's GPUs from Ampere on; bfloat16 keeps 7,
# also in the activations between them.
Precision = Literal["float32", "tf32", "bfloat16"]


@contextlib.contextmanager
def compute_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Context in which networks compute in a precision; weights and inputs keep their dtype."""
    before = _read_switches()
    allow_tf32(precision == "tf32")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        _set_switches(before)


def allow_tf32(allowed: bool) -> None:
    """Switches TF32 on or off for products and convolutions; a CPU has none."""
    value = ("tf32" if allowed else "ieee") if _HAS_PRECISIONS else allowed
    _set_switches((value, value))


# From torch 2.9 on, TF32 is a value of `fp32_precision`. The older flags remain, and reading them raises an error where
# they disagree with it; so only one of the two is used.
_HAS_PRECISIONS = hasattr(torch.backends, "fp32_precision")
_CUDNN: Any = torch.backends.cudnn  # its type lacks what newer versions have


def _read_switches() -> tuple[Any, Any]:
    """What torch does in products and in convolutions."""
    if _HAS_PRECISIONS:
        return torch.backends.cuda.matmul.fp32_precision, _CUDNN.conv.fp32_precision
    return torch.backends.cuda.matmul.allow_tf32, _CUDNN.allow_tf32


def _set_switches(values: tuple[Any, Any]) -> None:
    if _HAS_PRECISIONS:
        torch.backends.cuda.matmul.fp32_precision, _CUDNN.conv.fp32_precision = values
    else:
        torch.backends.cuda.matmul.allow_tf32, _CUDNN.allow_tf32 = values
