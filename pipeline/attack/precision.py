"""In which precision a source is differentiated, and which parts of an attack allow which."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

# TF32 keeps 10 of float32's 23 bits in products and convolutions, on NVIDIA's GPUs from Ampere on; bfloat16 keeps 7, in
# what lies between them as well.
Precision = Literal["float32", "tf32", "bfloat16"]


@contextlib.contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """Has networks computed in a precision for as long as it is entered; weights and inputs stay as they are."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
