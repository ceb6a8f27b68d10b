"""A small real task that needs no download: handwritten digits on photographs, and networks trained on them.

scikit-learn's 1,797 digits of 8 × 8 pixels (UCI's "Optical Recognition of Handwritten Digits", CC BY 4.0) are scaled up
to 32 × 32 and blended with crops of photographs from scikit-learn and scikit-image, as MNIST-M does with MNIST (Ganin
et al., 2016, section 5.2.1: |photograph − digit|). 1,297 digits, each on several crops, are for training; 500 others,
on crops of other photographs, for measuring. Both are written as shards of PNGs. On plain digits, random noise fools
small networks as often as attacks do; on these, networks have to learn to ignore the background.

Each network is trained here in seconds, without adversarial images, and written as an ordinary checkpoint.
"""

from pathlib import Path

import numpy as np
import skimage.data
import timm
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn import functional as F

from pipeline.data import codec, shards
from pipeline.models.checkpoint import serialize_weights
from pipeline.models.classifier import Classifier

SIDE, CLASSES, TRAINED_ON, CROPS = 32, 10, 1297, 3
_SHARD = 500


def prepare(folder: Path, networks: tuple[str, ...], *, seed: int = 0, epochs: int = 12) -> None:
    """Writes `shards/` and `weights/`; weights that exist are kept.

    Args:
        folder: Destination.
        networks: Names of timm architectures.
        seed: Seed of the split and the crops, and of each network's initial weights and batches.
        epochs: Passes over the training images.
    """
    train, test = split(seed)
    for name, (images, labels) in (("train", train), ("test", test)):
        _write(folder / "shards", name, images, labels)
    for number, name in enumerate(networks):
        path = folder / "weights" / f"{name}.safetensors"
        if not path.exists():
            network = fit(name, *train, seed=10 * seed + number, epochs=epochs)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(serialize_weights(network.network))


def split(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 for training, and for measuring."""
    digits = load_digits()
    random = np.random.default_rng(seed)
    order = random.permutation(len(digits.images))
    small = torch.tensor(digits.images[order], dtype=torch.float32).unsqueeze(1) / 16
    large = F.interpolate(small, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    labels = torch.tensor(digits.target[order], dtype=torch.int64)
    train_photographs = *load_sample_images().images, skimage.data.astronaut(), skimage.data.chelsea()
    train = (
        _blended(train_photographs, large[:TRAINED_ON].repeat(CROPS, 1, 1, 1), random),
        labels[:TRAINED_ON].repeat(CROPS),
    )
    test_photographs = skimage.data.coffee(), skimage.data.rocket()
    return train, (_blended(test_photographs, large[TRAINED_ON:], random), labels[TRAINED_ON:])


def _blended(photographs: tuple[np.ndarray, ...], large: Tensor, random: np.random.Generator) -> Tensor:
    """Digits (N, 1, H, W) in [0, 1] blended with crops of half-size photographs: (N, 3, H, W) uint8."""
    halved = [
        F.avg_pool2d(codec.to_float(torch.tensor(photograph).permute(2, 0, 1).unsqueeze(0)), 2)[0]
        for photograph in photographs
    ]
    blended = torch.empty(len(large), 3, SIDE, SIDE)
    for index, digit in enumerate(large):
        photograph = halved[random.integers(len(halved))]
        top, left = (int(random.integers(length - SIDE + 1)) for length in photograph.shape[1:])
        blended[index] = (photograph[:, top : top + SIDE, left : left + SIDE] - digit).abs()
    return (255 * blended).round().to(torch.uint8)


def fit(name: str, images: Tensor, labels: Tensor, *, seed: int, epochs: int) -> Classifier:
    """Trains a network on clean images."""
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=CLASSES)
    halves = {"mean": [0.5] * 3, "std": [0.5] * 3}
    preprocessing = {"policy": "direct", "input_size": SIDE, "interpolation": "bilinear", **halves}
    classifier = Classifier(network, preprocessing).requires_grad_(True)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=4e-3, weight_decay=0.05)
    size = 64
    steps = epochs * (len(images) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
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
        (folder / f"{name}-{number:02d}.tar").write_bytes(shards.write_tar(samples))
