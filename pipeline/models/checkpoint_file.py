"""Checkpoint files: recognised by their content, whatever their name, and read without executing anything from them."""

import argparse
import collections
import io
import pathlib
import re
import types
import warnings
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch

from pipeline.errors import GnpError, WeightsError
from pipeline.storage import Storage, sha256, split_url

# safetensors refuses longer headers; text in the place of the length is read as far more.
_LONGEST_HEADER = 100_000_000

# What files begin with that are downloaded or given in place of a checkpoint.
_FOREIGN = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file that it stands for; run git lfs pull"),
    (b"\x89HDF\r\n", "an HDF5 file, such as Keras writes"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "compressed by gzip; decompress it"),
    (b"BZh", "compressed by bzip2; decompress it"),
    (b"\xfd7zXZ", "compressed by xz; decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; decompress it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it and give the file inside"),
)

# The functions that pickles of NumPy's scalars and arrays call.
_NUMPY = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.empty(0).__reduce__()[0]}

# Classes that training programs store beside the weights, by their names in pickles. Constructing them runs no code
# from the file; paths are read as pure ones, which do not touch a disk.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    collections.defaultdict,
    *((kind, f"builtins.{kind.__name__}") for kind in (dict, list, int, float)),
    *((pathlib.PurePosixPath, name) for name in ("pathlib.PosixPath", "pathlib._local.PosixPath")),
    *((pathlib.PureWindowsPath, name) for name in ("pathlib.WindowsPath", "pathlib._local.WindowsPath")),
    np.dtype,
    np.ndarray,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != "ObjectDType"),
    *((function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, function in _NUMPY.items()),
]


@dataclass(frozen=True)
class CheckpointFile:
    """What a checkpoint file holds.

    Attributes:
        contents: Dictionaries, lists, tensors and plain values, as they were saved.
        sha256: sha256 of the file.
    """

    contents: object
    sha256: str


def read_checkpoint(checkpoint: str) -> CheckpointFile:
    """Reads a checkpoint file: safetensors, or what torch.save wrote in its present or its former format.

    Args:
        checkpoint: A file in a folder or on S3.

    Raises:
        WeightsError: The file does not exist, is damaged, or is something else than a checkpoint.
    """
    folder, name = split_url(checkpoint)
    try:
        data = Storage(folder).get(name)
    except GnpError as error:
        raise WeightsError(f"checkpoint {error}") from error
    return CheckpointFile(_parse(data, checkpoint), sha256(data))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type where it has none."""
    message = str(error).strip()
    return printable(message.splitlines()[0], 200) if message else type(error).__name__


def printable(value: object, most: int = 60) -> str:
    """A name from a file as it can stand in one line: control characters escaped, cut after `most` characters."""
    text = str(value)
    plain = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text[:most])
    return plain + "…" * (len(text) > most)


def _parse(data: bytes, name: str) -> object:
    if _is_safetensors(data):
        try:
            return safetensors.torch.load(data)
        except Exception as error:  # safetensors raises its own kinds, and torch on dtypes that it lacks
            raise _unreadable(name, "safetensors", error) from error
    if data.startswith(b"PK"):
        _require_torch_archive(data, name)
    elif not data.startswith(b"\x80"):  # of a pickle, which torch's former format begins with
        raise WeightsError(f"{name}: is {_describe_foreign(data)}; {_WANTED}")
    return _load_with_torch(data, name)


_WANTED = "a checkpoint is a safetensors file, or what torch.save wrote of a state dict"
_REMEDY = 'save the weights alone: torch.save({"state_dict": model.state_dict()}, …)'


def _unreadable(name: str, kind: str, error: Exception) -> WeightsError:
    return WeightsError(f"{name}: is a damaged or truncated {kind} file ({first_line(error)}); fetch or save it again")


def _is_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= _LONGEST_HEADER


def _describe_foreign(data: bytes) -> str:
    """What a file is that is no checkpoint, and what to do with it."""
    for beginning, kind in _FOREIGN:
        if data.startswith(beginning):
            return kind
    text = data[:1000].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not data:
        return "an empty file"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, downloaded in place of the file"
    if text.startswith(b"{"):
        is_index = b'"weight_map"' in data
        return "the index of weights in several files; save them in one" if is_index else "a JSON file"
    if data[257:262] == b"ustar":
        return "a tar archive; unpack it and give the file inside"
    if data[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", data):
        return "an ONNX model"
    return "of no known kind, or damaged"


def _require_torch_archive(data: bytes, name: str) -> None:
    """Refuses a zip archive that torch.save did not write.

    Raises:
        WeightsError: Says what it is.
    """
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except Exception as error:  # damaged archives fail in more ways than zipfile documents
        raise _unreadable(name, "torch or zip", error) from error
    if any("/code/" in member or member.endswith("constants.pkl") for member in members):
        raise WeightsError(f"{name}: is a TorchScript archive, which is a program; {_REMEDY}")
    if any(member.endswith(("archive_format", "models/model.json")) for member in members):
        raise WeightsError(f"{name}: is an exported program (torch.export); {_REMEDY}")
    if any(member.endswith("data.pkl") for member in members):
        return
    if "model.weights.h5" in members:
        kind = "a Keras model"
    elif members and all(member.endswith(".npy") for member in members):
        kind = "an archive of NumPy arrays (.npz)"
    else:
        kind = f"a zip archive of {', '.join(map(printable, members[:3])) or 'nothing'}; unpack it"
    raise WeightsError(f"{name}: is {kind}; {_WANTED}")


def _load_with_torch(data: bytes, name: str) -> object:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of storage classes and protocols that are no longer used
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file fails anywhere inside torch
        message = str(error)
        refused = re.search(r"GLOBAL (\S+)", message)
        if refused:
            raise WeightsError(
                f"{name}: holds a Python object ({printable(refused[1])}), and loading those runs code; {_REMEDY}"
            ) from error
        if "Invalid magic number" in message or "Unsupported operand" in message:
            raise WeightsError(
                f"{name}: is a pickle, but not one that torch.save writes by default; {_REMEDY}"
            ) from error
        detail = re.search(r"WeightsUnpickler error: (.*)", message)
        raise _unreadable(name, "torch", ValueError(detail[1]) if detail else error) from error
