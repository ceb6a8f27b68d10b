"""Small CNNs that attacks are tested on."""

import torch


def small_network() -> torch.nn.Module:
    """Logits (B, 5) of images (B, 3, 8, 8), in float32."""
    torch.manual_seed(3)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 6, 5)
    )
    return layers.requires_grad_(False)


def steep_network(seed: int = 0) -> torch.nn.Module:
    """Logits (B, 5) of images of any size, in float64; its gradient turns quickly, so that attacks differ."""
    torch.manual_seed(seed)
    last = torch.nn.Linear(32, 5)
    last.weight.data *= 30
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, stride=2),
        torch.nn.GELU(),
        torch.nn.Conv2d(8, 8, 3),
        torch.nn.GELU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        last,
    )
    return layers.double().requires_grad_(False)
