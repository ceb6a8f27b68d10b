"""torchvision's models: its own weights by name, and what they mean that neither a file nor an architecture says."""

from collections.abc import Collection, Mapping
from typing import Any

import torchvision.models
from torch import nn
from torchvision.models import WeightsEnum

from pipeline.errors import RecipeError, WeightsError
from pipeline.models.checkpoint_file import first_line

# What a torchvision model's name begins with in a recipe.
TORCHVISION_PREFIX = "torchvision/"

# Architectures that renormalise their input for weights ported from TensorFlow, and a module of each one's auxiliary
# heads, which are not used in eval mode: https://pytorch.org/vision/stable/models.html.
_AUXILIARY = {"inception_v3": "AuxLogits", "googlenet": "aux1"}


def architectures() -> list[str]:
    """The classifiers' architectures."""
    return list(torchvision.models.list_models(module=torchvision.models))


def architecture_of(model: str) -> str:
    """The architecture in a model's name: `resnet50` of `torchvision/resnet50.IMAGENET1K_V2`."""
    return model.removeprefix(TORCHVISION_PREFIX).partition(".")[0]


def weights_name_of(model: str) -> str:
    """The weights in a model's name: `IMAGENET1K_V2`; empty if it names none."""
    return model.partition(".")[2] if model.startswith(TORCHVISION_PREFIX) else ""


def library_weights(architecture: str) -> dict[str, WeightsEnum]:
    """The library's weights of an architecture by name, without the moving DEFAULT."""
    return {weights.name: weights for weights in torchvision.models.get_model_weights(architecture)}


def build_torchvision_model(architecture: str, arguments: Mapping[str, Any], *, keys: Collection[str]) -> nn.Module:
    """An architecture with random weights.

    Args:
        architecture: Its name in torchvision.
        arguments: Arguments of its constructor.
        keys: Keys of the weights that it will get: it has auxiliary heads where they do.
    """
    defaults: dict[str, Any] = {}
    if architecture in _AUXILIARY:
        has_heads = any(_AUXILIARY[architecture] in key.split(".") for key in keys)
        defaults = {"aux_logits": has_heads, "init_weights": False}
    network: nn.Module = torchvision.models.get_model(architecture, weights=None, **{**defaults, **arguments})
    return network


def download_weights(weights: WeightsEnum) -> dict[str, Any]:
    """The state dict of the library's weights, from torch's hub cache or else downloaded into it.

    Raises:
        WeightsError: It is not cached, and cannot be downloaded.
    """
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except Exception as error:  # networks, proxies and damaged files fail in ways that no list of exceptions covers
        raise WeightsError(
            f"{weights.url}: these pretrained weights cannot be loaded ({first_line(error)}); connect once, put the "
            "file into $TORCH_HOME/hub/checkpoints, or give a checkpoint in the recipe"
        ) from error


def library_preprocessing(weights: WeightsEnum) -> dict[str, Any]:
    """Input size, interpolation, mean and std of the library's weights, named as in timm's data configs."""
    preset = weights.transforms()
    return {
        "input_size": (3, preset.crop_size[0], preset.crop_size[0]),
        "interpolation": preset.interpolation.value,
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
    }


def library_args(architecture: str, weights: WeightsEnum) -> dict[str, Any]:
    """Arguments with which the library constructs an architecture for its own weights."""
    if architecture in _AUXILIARY:
        return {"transform_input": True}
    return {"image_size": weights.meta["min_size"][0]} if architecture.startswith("vit_") else {}


def args_of_file(architecture: str, args: Mapping[str, Any], sha256: str, *, name: str) -> dict[str, Any]:
    """Arguments for the weights of a file, with the one that a state dict does not hold but that changes the function.

    Args:
        architecture: Name of the torchvision architecture.
        args: Arguments that the recipe sets.
        sha256: sha256 of the file.
        name: The model's name, for messages.

    Raises:
        RecipeError: The argument must be set: the file is none of the library's.
    """
    if architecture not in _AUXILIARY or "transform_input" in args:
        return dict(args)
    for weights in library_weights(architecture).values():
        published = weights.url.rpartition("-")[2].removesuffix(".pth")  # the beginning of the file's sha256
        if sha256.startswith(published):
            return {**library_args(architecture, weights), **args}
    raise RecipeError(
        f"{name}: set args = {{ transform_input = true }} if the weights are torchvision's own {architecture} or were "
        "fine-tuned from them, or false if they were trained from nothing; the file does not tell, and results differ"
    )
