"""A small real task that needs no download: scikit-learn's handwritten digits, and networks trained on them.

1,797 digits of 8 × 8 pixels (UCI's "Optical Recognition of Handwritten Digits", CC BY 4.0), scaled up to 32 × 32 and
written as shards of PNGs: 1,297 to train on, 500 to measure on. Each network is trained here in seconds, without any
adversarial image, and written as a checkpoint such as anybody might bring.
"""

from pathlib import Path

import numpy as np
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from pipeline import codec, models, shards
from pipeline.classifier import Classifier

SIDE, CLASSES, TRAINED_ON = 32, 10, 1297
_SHARD = 500


def prepare(folder: Path, networks: dict[str, int], *, seed: int = 0, epochs: int = 12) -> None:
    """Writes `shards/` and `weights/`, unless they stand.

    Args:
        folder: Where.
        networks: timm's architecture → the side of its input.
        seed: Of the division, and of each network's first weights and order.
        epochs: Passes over the training images.
    """
    images, labels = digits(seed)
    for name, part in (("train", slice(0, TRAINED_ON)), ("test", slice(TRAINED_ON, None))):
        _write(folder / "shards", name, images[part], labels[part])
    for number, (name, side) in enumerate(networks.items()):
        path = folder / "weights" / f"{name}.safetensors"
        if not path.exists():
            network = fit(name, side, images[:TRAINED_ON], labels[:TRAINED_ON], seed=10 * seed + number, epochs=epochs)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(models.dump(network.network))


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """(1797, 3, 32, 32) uint8 and (1797,) int64, in an order of their own."""
    found = load_digits()
    small = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    large = F.interpolate(small, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    order = torch.tensor(np.random.default_rng(seed).permutation(len(large)))
    pixels = (255 * large).round().to(torch.uint8).repeat(1, 3, 1, 1)
    return pixels[order], torch.tensor(found.target, dtype=torch.int64)[order]


def fit(name: str, side: int, images: Tensor, labels: Tensor, *, seed: int, epochs: int) -> Classifier:
    """A network trained on clean images alone."""
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=CLASSES)
    halves = {"mean": [0.5] * 3, "std": [0.5] * 3}
    preprocessing = {"policy": "direct", "input_size": side, "interpolation": "bilinear", **halves}
    classifier = Classifier(network, preprocessing).requires_grad_(True)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.05)
    size = 64
    steps = epochs * (len(images) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    classifier.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(images)), size)[: len(images) // size]:
            loss = F.cross_entropy(classifier(codec.to_float(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return classifier.eval()


def _write(folder: Path, name: str, images: Tensor, labels: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(images), _SHARD)):
        chosen = range(start, min(start + _SHARD, len(images)))
        samples = [
            {
                "__key__": f"{name}{index:04d}",
                "png": codec.encode(images[index]),
                "cls": str(int(labels[index])).encode(),
            }
            for index in chosen
        ]
        (folder / f"{name}-{number:02d}.tar").write_bytes(shards.write(samples))
