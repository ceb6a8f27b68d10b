"""Randomness per image: a draw depends on (seed, key, step) alone, never on batch, worker or retry."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, key: str, step: int) -> torch.Generator:
    """A CPU generator for one image at one step; drawn on the CPU, so that every device sees the same numbers."""
    digest = hashlib.sha256(f"{seed}/{step}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def signs(seed: int, keys: Sequence[str], step: int, shape: torch.Size) -> Tensor:
    """Fair ±1 draws: (len(keys), *shape) float32."""
    return torch.stack(
        [torch.randint(0, 2, shape, generator=generator(seed, key, step)).to(torch.float32) * 2 - 1 for key in keys]
    )
