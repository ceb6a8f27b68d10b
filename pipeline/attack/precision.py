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
    _set_switches(("tf32", "tf32") if allowed else ("ieee", "ieee"))


# From torch 2.9 on, TF32 is a value of `fp32_precision`. Setting the older flags sets it too, as a rule; reading them
# fails where a program has set it by itself. So the older are set, as torch itself reads them, and the newer are read.
_HAS_PRECISIONS = hasattr(torch.backends, "fp32_precision")
_CUDNN: Any = torch.backends.cudnn  # its type lacks what newer versions have


def _read_switches() -> tuple[str, str]:
    """What torch does in products and in convolutions."""
    if _HAS_PRECISIONS:
        return torch.backends.cuda.matmul.fp32_precision, _CUDNN.conv.fp32_precision
    flags = torch.backends.cuda.matmul.allow_tf32, _CUDNN.allow_tf32
    return "tf32" if flags[0] else "ieee", "tf32" if flags[1] else "ieee"


def _set_switches(values: tuple[str, str]) -> None:
    torch.backends.cuda.matmul.allow_tf32, _CUDNN.allow_tf32 = (value == "tf32" for value in values)
    if _HAS_PRECISIONS and any(
        now != value for now, value in zip(_read_switches(), values, strict=True) if now != "none"
    ):
        torch.backends.cuda.matmul.fp32_precision, _CUDNN.conv.fp32_precision = values
