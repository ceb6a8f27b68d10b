"""What every section gets: the device, sizes for it, and the time that it may take."""

import time
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from pipeline.models.classifier import Classifier
from pipeline.models.gpu_networks import LAUNCH


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rated: timm's names of the networks that gradients are counted on.
        repeated: timm's name and the input size of the sources whose bytes are compared, by kind.
        side: Side of the images.
        batches: Batch sizes; rates of every implementation are taken at the first.
        rounds: Rounds of every measurement.
        photographs: Number of the demo's photographs.
        steps: Steps of the attacks whose success is compared.
    """

    rated: tuple[str, ...]
    repeated: dict[str, tuple[str, int]]
    side: int
    batches: tuple[int, ...]
    rounds: int
    photographs: int
    steps: int


GPU = Sizes(
    rated=("resnet50", "tf_efficientnet_lite0", "deit_small_patch16_224"),
    repeated={
        "plain": ("resnet50", 224),
        "resizing": ("resnet18", 160),
        "attention": ("vit_small_patch16_384", 384),
    },
    side=224,
    batches=(128, 512, 256, 32),
    rounds=3,
    photographs=20,
    steps=10,
)
# To see that each section runs.
CPU = Sizes(
    rated=("test_resnet",),
    repeated={"plain": ("test_resnet", 64), "resizing": ("test_resnet", 48), "attention": ("test_vit", 160)},
    side=64,
    batches=(2,),
    rounds=1,
    photographs=2,
    steps=1,
)


@dataclass(frozen=True)
class Setting:
    """The device and sizes of a check.

    Attributes:
        device: The device.
        sizes: How much is measured there.
        assets: Folder with the demo's `weights` and `photographs`.
        ends: When the section in hand should end, of `time.monotonic`.
    """

    device: torch.device
    sizes: Sizes
    assets: Path
    ends: float

    @property
    def has_time(self) -> bool:
        """Whether the section may begin another measurement."""
        return time.monotonic() < self.ends

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def classifier(self, name: str, side: int, *, launch: str = LAUNCH) -> Classifier:
        """A network with random weights, which cost the same as trained ones, for images of any size."""
        torch.manual_seed(0)
        return Classifier(create_network(name), preprocessing(side)).optimize_for(self.device, launch=launch)

    def images(self, count: int, side: int | None = None) -> tuple[Tensor, Tensor, list[str]]:
        """Random pixels (N, 3, side, side) uint8, their classes and their keys, always the same; on the device."""
        generator = torch.Generator().manual_seed(1)
        side = side or self.sizes.side
        pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 5, (count,), generator=generator)
        return pixels.to(self.device), labels.to(self.device), [str(index) for index in range(count)]


def create_network(name: str) -> nn.Module:
    """A network of timm; of a ResNet, the last norms of blocks are not zero, or gradients would vanish."""
    options = {"zero_init_last": False} if name.startswith("resnet") else {}
    network: nn.Module = timm.create_model(name, **options).eval()
    return network


def preprocessing(side: int) -> dict[str, object]:
    """Preprocessing of a `Classifier`."""
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return {"input_size": side, "interpolation": "bilinear", "policy": "direct", **statistics}
