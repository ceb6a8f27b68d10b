"""Model weights as files: reads checkpoints, loads a state dict into a network, serializes it as safetensors."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm.models
from torch import Tensor, nn

from pipeline.errors import GnpError, WeightsError
from pipeline.storage import Storage, split_url


def read_state_dict(checkpoint: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, read by timm (safetensors, or torch with weights_only).

    Args:
        checkpoint: A file in a folder or on S3.

    Raises:
        WeightsError: The file does not exist, cannot be read, or holds something else than tensors by name.
    """
    folder, name = split_url(checkpoint)
    if Path(name).suffix not in (".safetensors", ".pth", ".pt", ".ckpt", ".bin"):
        raise WeightsError(f"{checkpoint}: unknown kind of checkpoint; .safetensors or .pth is read")
    try:
        data = Storage(folder).get(name)
        with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as file:
            file.write(data)
            file.flush()
            state: Any = timm.models.load_state_dict(file.name, use_ema=False, weights_only=True)
    except GnpError as error:
        raise WeightsError(f"checkpoint {error}") from error
    except Exception as error:  # a damaged or hostile file fails anywhere inside pickle, zip or safetensors
        raise WeightsError(f"{checkpoint}: not a readable checkpoint ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{checkpoint}: not a checkpoint: it holds something else than tensors by name")
    return cast("dict[str, Tensor]", state)


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], *, checkpoint: str, architecture: str) -> None:
    """Loads a state dict whose keys and shapes are exactly the network's.

    Args:
        network: Where the weights go.
        state: The weights.
        checkpoint: Where they come from, for messages.
        architecture: Name of the network, for messages.

    Raises:
        WeightsError: Keys or shapes differ; names them.
    """
    expected = network.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise WeightsError(
            f"{checkpoint}: does not fit {architecture}: {len(missing)} keys missing ({', '.join(missing[:3])}…), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])}…)"
        )
    misshapen = [key for key in expected if expected[key].shape != state[key].shape]
    if misshapen:
        key = misshapen[0]
        raise WeightsError(
            f"{checkpoint}: does not fit {architecture}: {key} has shape {tuple(state[key].shape)}, "
            f"{tuple(expected[key].shape)} is wanted"
        )
    network.load_state_dict(state, strict=True)


def serialize_weights(network: nn.Module) -> bytes:
    """A network's state dict as a safetensors file; the same weights give the same bytes."""
    state = network.state_dict()
    # Cloned, as safetensors refuses tensors that share memory; contiguous, as it refuses channels-last.
    return bytes(safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in sorted(state.items())}))


def load_serialized_weights(network: nn.Module, data: bytes, *, name: str, architecture: str) -> None:
    """Loads weights as `serialize_weights` wrote them.

    Args:
        network: Where the weights go.
        data: The safetensors file.
        name: Name of the model or checkpoint, for messages.
        architecture: Name of the network, for messages.

    Raises:
        WeightsError: The file is damaged, or does not fit the network.
    """
    try:
        network.load_state_dict(safetensors.torch.load(data), strict=True)
    except Exception as error:  # damaged bytes fail in safetensors, another timm's architecture in torch
        raise WeightsError(f"{name}: its stored weights do not fit {architecture} ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type where it has none."""
    message = str(error).strip()
    return message.splitlines()[0][:200] if message else type(error).__name__
