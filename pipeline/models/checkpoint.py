"""A network's weights: loaded from what a checkpoint holds, and stored as safetensors."""

import math
from collections.abc import Mapping, Sequence

import safetensors.torch
from torch import Tensor, nn

from pipeline.errors import RecipeError, WeightsError
from pipeline.models.checkpoint_file import first_line, printable
from pipeline.models.state_search import find_weights


def load_weights(
    network: nn.Module,
    contents: object,
    *,
    checkpoint: str,
    architecture: str,
    choice: str = "",
    mean_std: tuple[Sequence[float], Sequence[float]] | None = None,
) -> None:
    """Loads the weights of a checkpoint into a network: all of the network's, in any floating-point precision.

    Args:
        network: Where the weights go.
        contents: What the checkpoint holds.
        checkpoint: Where they come from, for messages.
        architecture: Name of the network, for messages.
        choice: Which weights are taken where the checkpoint holds several; see `find_weights`.
        mean_std: Mean and std of the preprocessing, with which a normaliser among the weights must agree.

    Raises:
        WeightsError: They do not fit, several that differ do, or they are not finite.
        RecipeError: The checkpoint holds a normaliser with other values.
    """
    way = find_weights(contents, network.state_dict(), choice=choice, checkpoint=checkpoint, architecture=architecture)
    if mean_std:
        _require_same_normaliser(way.normaliser, *mean_std, checkpoint=checkpoint)
    try:
        _load(network, way.state)
    except Exception as error:  # dtypes that torch cannot convert, and what an architecture's own hooks raise
        raise WeightsError(f"{checkpoint}: cannot be loaded into {architecture} ({first_line(error)})") from error


def require_finite_weights(network: nn.Module, name: str) -> None:
    """Refuses weights that are not numbers.

    Raises:
        WeightsError: Names the first tensor with NaN or infinity.
    """
    for key, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise WeightsError(
                f"{name}: its weights are not finite: {count} of the {tensor.numel()} values of {key} are NaN or "
                "infinite; take a checkpoint from before training diverged"
            )


def serialize_weights(network: nn.Module) -> bytes:
    """A network's state dict as a safetensors file; the same weights give the same bytes."""
    state = network.state_dict()
    # Cloned, as safetensors refuses tensors that share memory; contiguous, as it refuses channels-last.
    return bytes(safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in sorted(state.items())}))


def read_serialized_weights(data: bytes, *, name: str) -> dict[str, Tensor]:
    """The state dict that `serialize_weights` wrote.

    Raises:
        WeightsError: The bytes are damaged.
    """
    try:
        return dict(safetensors.torch.load(data))
    except Exception as error:  # safetensors raises kinds of its own
        raise WeightsError(f"{name}: its stored weights are damaged ({first_line(error)})") from error


def load_serialized_weights(network: nn.Module, state: Mapping[str, Tensor], *, name: str, architecture: str) -> None:
    """Loads a state dict that `read_serialized_weights` read.

    Args:
        network: Where the weights go.
        state: The state dict.
        name: Name of the model or checkpoint, for messages.
        architecture: Name of the network, for messages.

    Raises:
        WeightsError: They do not fit the network.
    """
    try:
        _load(network, state)
    except Exception as error:  # another timm's architecture fails in torch, or in its own hooks
        raise WeightsError(f"{name}: its stored weights do not fit {architecture} ({first_line(error)})") from error


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    # Into the network's own state dict, which carries the versions of its modules: some refuse to load without.
    whole = network.state_dict()
    missing = [key for key in whole if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise KeyError(f"no {missing[0]}")
    whole.update(state)
    network.load_state_dict(whole, strict=True)


def _require_same_normaliser(
    found: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float], *, checkpoint: str
) -> None:
    """Refuses a recipe's mean and std if a normaliser in the checkpoint has others: results would be wrong silently."""
    values = {key: tensor.flatten().tolist() for key, tensor in found.items()}
    scale = 255 if any(max(map(abs, triple)) > 3 for triple in values.values()) else 1  # of pixels in [0, 255]
    to_set = {}
    for key, triple in values.items():
        kind = "mean" if key.endswith("mean") else "std"
        to_set[kind] = [value / scale for value in triple]
    wanted = {"mean": mean, "std": std}
    if any(
        not math.isclose(*pair, abs_tol=1e-4)
        for kind in to_set
        for pair in zip(to_set[kind], wanted[kind], strict=True)
    ):
        settings = ", ".join(f"{kind} = [{', '.join(f'{value:.4g}' for value in to_set[kind])}]" for kind in to_set)
        raise RecipeError(
            f"{checkpoint}: the network was trained behind a normaliser ({', '.join(map(printable, found))}) with "
            f"other values than the recipe's; set {settings}"
        )
