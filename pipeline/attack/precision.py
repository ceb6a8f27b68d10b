"""Numeric precision of the source's forward and backward passes."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

# TF32 keeps 10 of float32's 23 bits in products and convolutions, on NVIDIA's GPUs from Ampere on; bfloat16 keeps 7,
# also in the activations between them.
Precision = Literal["float32", "tf32", "bfloat16"]


@contextlib.contextmanager
def compute_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Context in which networks compute in a precision; weights and inputs keep their dtype."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
