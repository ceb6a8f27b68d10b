"""Files of weights as training programs and downloads leave them."""

import argparse
import collections
import functools
import io
import json
import os
import pathlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from pipeline.models.classifier import state_digest
from pipeline.models.load import load_model
from pipeline.models.spec import ModelSpec
from tests.corpus.cases import Refusal, case
from tests.samples import CLASSES

KIND = "checkpoints"
EXECUTED: list[object] = []
State = Mapping[str, Tensor]


@functools.cache
def network() -> nn.Module:
    """The tiny network."""
    torch.manual_seed(0)
    built: nn.Module = timm.create_model("test_resnet", num_classes=CLASSES)
    return built


def state() -> dict[str, Tensor]:
    """Its weights."""
    return dict(network().state_dict())


def ema() -> dict[str, Tensor]:
    """Other weights."""
    return {**state(), "fc.bias": state()["fc.bias"] + 1}


def prefixed(prefix: str, values: State | None = None) -> dict[str, Tensor]:
    """Weights under a prefix."""
    return {prefix + key: tensor for key, tensor in (values or state()).items()}


def without(*keys: str) -> dict[str, Tensor]:
    """Weights without those whose key ends in one of some texts."""
    return {key: tensor for key, tensor in state().items() if not key.endswith(keys)}


def saved(contents: object, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(contents, buffer, **options)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def loaded(folder: Path, data: bytes, file: str = "weights.pth", **settings: Any) -> str:
    """Which weights the tiny network has from a file: `right`, `ema` or `other`."""
    (folder / file).write_bytes(data)
    spec = ModelSpec(**{"model": "test_resnet", "name": "tiny", "checkpoint": str(folder / file), **settings})
    digest = load_model(spec, classes=CLASSES).digest
    assert not EXECUTED
    return {digests()[0]: "right", digests()[1]: "ema"}.get(digest, "other")


@functools.cache
def digests() -> tuple[str, str]:
    """Digests of the weights and of the other weights."""
    other = timm.create_model("test_resnet", num_classes=CLASSES)
    other.load_state_dict(ema())
    return state_digest(network()), state_digest(other)


def register(name: str, expected: object, data: Any, file: str = "weights.pth", **settings: Any) -> None:
    """Registers a case: a file with some contents, or bytes, is loaded into the tiny network."""

    def run(folder: Path) -> object:
        contents = data() if callable(data) else data
        return loaded(folder, contents if isinstance(contents, bytes) else saved(contents), file, **settings)

    case(KIND, name, expected)(run)


class RunsCode:
    """An object whose pickle runs code where it is loaded."""

    def __reduce__(self) -> Any:
        return EXECUTED.append, ("x",)


class RunsCommand:
    """An object whose pickle runs a command where it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


# Names say nothing about contents.
for _file in ("weights", "model.pth.tar", "MODEL.PTH", "best.model", "weights.safetensors"):
    register(f"torch's format, called {_file}", "right", state, _file)
for _file in ("weights.pth", "weights.safetensors", "weights"):
    register(f"safetensors, called {_file}", "right", lambda: to_safetensors(state()), _file)
register("torch's former format", "right", lambda: saved(state(), _use_new_zipfile_serialization=False))

# What training programs put around a state dict, and around the keys within it.
for _name in ("state_dict", "model", "model_state_dict", "net", "weights of the best epoch"):
    register(f"nested in {_name}", "right", lambda name=_name: {name: state(), "epoch": 3, "optimizer": {"lr": 0.1}})
register("nested four deep", "right", lambda: {"a": {"b": {"c": {"d": state()}}}})
register("keys beside numbers in one dictionary", "right", lambda: {**state(), "epoch": 3, "note": "best"})
for _prefix in ("module.", "model.", "_orig_mod.", "module.model.", "backbone.", "module._orig_mod.", "net.encoder."):
    register(f"prefix {_prefix}", "right", lambda prefix=_prefix: {"state_dict": prefixed(prefix)})


@case(KIND, "wrappers in the middle of keys", "right")
def _(folder: Path) -> object:
    def wrap(key: str) -> str:
        return key.replace("layer1.", "layer1.module.").replace("layer2.0.", "layer2.0._orig_mod.")

    return loaded(folder, saved({wrap(key): tensor for key, tensor in state().items()}))


register("no num_batches_tracked", "right", lambda: without("num_batches_tracked"))
register("an averaged model's count", "right", lambda: {**prefixed("module."), "n_averaged": torch.tensor(5)})
register("a training program's arguments", "right", lambda: {"state_dict": state(), "args": argparse.Namespace(lr=1)})
register(
    "NumPy's numbers, arrays and random state, paths, defaultdict",
    "right",
    lambda: {
        "model": state(),
        "best": np.float64(0.5),
        "history": np.arange(3.0),
        "rng": np.random.default_rng(0).bit_generator.state,
        "legacy_rng": np.random.RandomState(0).get_state(),
        "path": pathlib.Path("/data"),
        "meters": collections.defaultdict(list),
    },
)
register(
    "parameters", "right", lambda: {key: nn.Parameter(value, requires_grad=False) for key, value in state().items()}
)
register("float64", "right", lambda: {key: value.double() for key, value in state().items()})
for _dtype in (torch.float16, torch.bfloat16):
    register(
        f"{_dtype}",
        "other",
        lambda dtype=_dtype: {k: v.to(dtype) if v.is_floating_point() else v for k, v in state().items()},
    )

# Several weights in one file.
register("the model and an equal copy", "right", lambda: {"model": state(), "ema": prefixed("module.")})
register(
    "equal copies under two prefixes", "right", lambda: prefixed("module.model.") | prefixed("module.attacker.model.")
)
_AMBIGUOUS = Refusal('holds several weights that fit test_resnet, and differ; set weights = "model" or "ema"$')
register("model and ema", _AMBIGUOUS, lambda: {"model": state(), "ema": ema()})
register("model and ema: ema chosen", "ema", lambda: {"model": state(), "ema": ema()}, weights="ema")
register("model and ema under prefixes", _AMBIGUOUS, lambda: prefixed("model.") | prefixed("ema.", ema()))
register(
    "a nested choice", "ema", lambda: {"a": {"model": state(), "ema": prefixed("module.", ema())}}, weights="a.ema"
)
register(
    "a choice that the file has not",
    Refusal(r"weights = 'emma': the file holds model, ema; did you mean ema\?"),
    lambda: {"model": state(), "ema": ema()},
    weights="emma",
)
register(
    "a loss's weights beside the network's",
    Refusal(r'1 unknown key \(criterion.weight…\); the file holds state_dict….*set weights = "state_dict.model"'),
    lambda: {"state_dict": prefixed("model.") | {"criterion.weight": torch.ones(CLASSES)}},
)
register(
    "a loss's weights beside the network's, left out by choice",
    "right",
    lambda: {"state_dict": prefixed("model.") | {"criterion.weight": torch.ones(CLASSES)}},
    weights="state_dict.model",
)


# A normaliser in front of the network.
def _behind(mean: list[float], std: list[float], name: str = "0", prefix: str = "1.") -> dict[str, Tensor]:
    shape = (1, 3, 1, 1)
    buffers = {f"{name}.mean": torch.tensor(mean).view(shape), f"{name}.std": torch.tensor(std).view(shape)}
    return prefixed(prefix) | buffers


_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
register("behind an equal normaliser", "right", lambda: _behind([0.5] * 3, [0.25] * 3), **_HALF)
register(
    "behind an equal normaliser of 255", "right", lambda: _behind([127.5] * 3, [63.75] * 3, "norm", "net."), **_HALF
)
register(
    "behind another normaliser",
    Refusal(r"behind a normaliser \(0.mean, 0.std\).*; set mean = \[0.1, 0.2, 0.3\], std = \[1, 1, 1\]$"),
    lambda: _behind([0.1, 0.2, 0.3], [1.0] * 3),
    **_HALF,
)

# Weights of another network.
for _classes in (7, CLASSES + 1):
    register(
        f"a head of {_classes} classes",
        Refusal(rf"fc.(bias|weight) has shape \({_classes}, .*\(10, .*is wanted; the file holds"),
        lambda classes=_classes: dict(timm.create_model("test_resnet", num_classes=classes).state_dict()),
    )
register(
    "a renamed key",
    Refusal(r"1 missing key \(fc.bias…\), 1 unknown key \(head.bias…\); the file holds conv1.0.weight, "),
    lambda: {**without("fc.bias"), "head.bias": state()["fc.bias"]},
)
register(
    "a key that is a number", Refusal(r"1 unknown key \(7…\)"), lambda: dict([*state().items(), (7, torch.ones(1))])
)
register("an odd key", Refusal(r"1 unknown key \(a\\nb"), lambda: {**state(), "a\nb" + "x" * 999: torch.ones(1)})
for _kind, _tensor, _line in (
    ("integers", torch.ones(10, dtype=torch.int32), "fc.bias is of torch.int32, torch.float32 is wanted"),
    ("complex numbers", torch.ones(10, dtype=torch.complex64), "fc.bias is of torch.complex64"),
    ("a sparse tensor", torch.ones(10).to_sparse(), "fc.bias is a sparse or nested tensor"),
    ("a meta tensor", torch.ones(10, device="meta"), "fc.bias is a meta tensor"),
):
    register(_kind, Refusal(_line), lambda tensor=_tensor: {**state(), "fc.bias": tensor})


@case(KIND, "a quantized tensor", Refusal("fc.bias is a quantized tensor, a plain one is wanted"))
def _(folder: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch gives them up
        quantized = torch.quantize_per_tensor(torch.ones(10), 0.1, 0, torch.qint8)
        data = saved({**state(), "fc.bias": quantized})
    return loaded(folder, data)


for _value in (float("nan"), float("-inf")):
    register(
        f"weights of {_value}",
        Refusal("tiny: its weights are not finite: 1 of the 10 values of fc.bias are NaN or infinite"),
        lambda value=_value: {**state(), "fc.bias": torch.tensor([value] + [0.0] * 9)},
    )
register(
    "float64 beyond float32",
    Refusal("fc.bias are NaN or inf"),
    lambda: {**state(), "fc.bias": torch.full((10,), 1e300, dtype=torch.float64)},
)
register(
    "weights that overflow",
    Refusal("tiny: its logits for a grey image are not finite"),
    lambda: {**state(), "conv1.1.bias": torch.full_like(state()["conv1.1.bias"], 3e38)},
)

# What is no checkpoint.
register("a list", Refusal("it holds no tensors by name; the file holds a list"), lambda: [state()])
register("a tensor", Refusal("it holds no tensors by name; the file holds a Tensor"), lambda: torch.ones(3))
register("an optimizer's state alone", Refusal("no tensors by name; the file holds epoch…"), {"epoch": 1})
_OBJECT = r"holds a Python object \({}\), and loading those runs code; save the weights alone: torch.save"
register("a whole pickled module", Refusal(_OBJECT.format(r"timm\.models\.resnet\.ResNet")), network)
register(
    "a module within a dictionary", Refusal(_OBJECT.format(r"torch\.nn\.\S+Linear")), lambda: {"model": nn.Linear(1, 1)}
)
for _legacy in (True, False):
    register(
        f"a pickle that runs code{', in the former format' * _legacy}",
        Refusal(_OBJECT.format(r"getattr|builtins.\S+|\S+")),
        lambda legacy=_legacy: saved({"state_dict": RunsCode()}, _use_new_zipfile_serialization=not legacy),
    )
register("a pickle that runs a command", Refusal(_OBJECT.format("(posix|os|nt).system")), RunsCommand)
register(
    "pickle.dump",
    Refusal("is a pickle, but not one that torch.save writes|Python object"),
    lambda: pickle.dumps(state()),
)
register(
    "another pickle protocol", Refusal("is a pickle, but not one that torch"), lambda: saved(state(), pickle_protocol=4)
)


@case(KIND, "a TorchScript archive", Refusal("is a TorchScript archive, which is a program; save the weights alone"))
def _(folder: Path) -> object:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch gives it up
        torch.jit.save(torch.jit.script(nn.ReLU()), buffer)
    return loaded(folder, buffer.getvalue())


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.ones(3))
    return buffer.getvalue()


_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
_INDEX = json.dumps({"metadata": {}, "weight_map": {"fc.bias": "model-00001-of-00002.safetensors"}}).encode()
for _name, _data, _line in (
    ("an empty file", b"", "is an empty file"),
    ("a web page", b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, downloaded in place of"),
    ("a git-lfs pointer", _LFS, "is a git-lfs pointer, .*; run git lfs pull"),
    ("the index of sharded weights", _INDEX, "is the index of weights in several files; save them in one"),
    ("an HDF5 file of Keras", b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, such as Keras writes"),
    ("a .keras file", zipped(**{"config.json": b"{}", "model.weights.h5": b""}), "is a Keras model"),
    ("an ONNX file", b"\x08\x07\x12\x07pytorch\x1a\x052.0.0", "is an ONNX model"),
    ("an npz file", _npz(), "is an archive of NumPy arrays"),
    ("a zipped checkpoint", zipped(**{"best.pth": b"x"}), "is a zip archive of best.pth; unpack it"),
    ("a gzipped checkpoint", b"\x1f\x8b\x08" + bytes(20), "is compressed by gzip; decompress it"),
    ("a tar archive", bytes(257) + b"ustar\x00" + bytes(250), "is a tar archive; unpack it"),
    ("junk", b"junk", "is of no known kind, or damaged; a checkpoint is a safetensors file"),
):
    register(_name, Refusal(_line), _data)
for _name, _kind, _whole in (
    ("a safetensors file", "safetensors", lambda: to_safetensors(state())),
    ("a torch file", "torch", lambda: saved(state())),
    ("a file of torch's former format", "torch", lambda: saved(state(), _use_new_zipfile_serialization=False)),
):
    for _part in (0.01, 0.5, 0.999):
        register(
            f"{_part:.1%} of {_name}",
            Refusal(f"is a damaged or truncated {_kind}"),
            lambda whole=_whole, part=_part: whole()[: int(len(whole()) * part)],
        )


@case(KIND, "a dictionary that contains itself", Refusal("does not fit"))
def _(folder: Path) -> object:
    contents: dict[str, object] = {"a": torch.ones(1)}
    contents |= {str(number): contents for number in range(50)}
    return loaded(folder, saved(contents))


@case(KIND, "a folder of weights", Refusal("checkpoint .*weights"))
def _(folder: Path) -> object:
    (folder / "weights").mkdir()
    spec = ModelSpec("test_resnet", checkpoint=str(folder / "weights"))
    return load_model(spec, classes=CLASSES).digest
