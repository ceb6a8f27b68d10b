"""Loads models: from the hub or a checkpoint, and again from stored weights, as classifiers of images in [0, 1].

Preprocessing lives inside the model: attacks and scores see pixels in [0, 1] and nothing else, and every target resizes
and normalises as its weights expect, under a policy that every row of the results records.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import timm
import timm.data
import timm.models
import torch
import torchvision.models
from torch import nn

from pipeline.attack.draws import Draws
from pipeline.errors import RecipeError, WeightsError
from pipeline.models.checkpoint import first_line, load_serialized_weights, load_strictly, read_state_dict
from pipeline.models.classifier import Classifier
from pipeline.models.defenses import RandomResizePad, describe_defenses
from pipeline.models.predict import predict_defended
from pipeline.models.purifiers import Purifier
from pipeline.models.spec import HUB_PREFIXES, TORCHVISION_PREFIX, ModelSpec, TargetSpec

# It warns at every failed attempt; the error below says so in one line.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def load_model(spec: ModelSpec, *, classes: int = 1000) -> Classifier:
    """Loads a model from the hub or its checkpoint: frozen, in eval mode, on the CPU, tried on a grey image.

    Args:
        spec: The model.
        classes: Number of classes of the labels, which the model must have.

    Raises:
        WeightsError: The weights cannot be loaded, do not fit the architecture, or have another number of classes.
        RecipeError: The model's own preprocessing is not supported.
    """
    network = _load_from_checkpoint(spec, classes) if spec.checkpoint else _load_pretrained(spec)
    classifier = Classifier(network, _preprocessing(spec, network))
    _check_forward_pass(spec, classifier, classes)
    return classifier


def hub_config(spec: ModelSpec) -> dict[str, Any]:
    """The timm architecture and arguments in a hub repository's configuration; empty for all other models.

    Raises:
        WeightsError: The hub cannot be reached.
    """
    if not spec.model.startswith(HUB_PREFIXES):
        return {}
    try:
        _, architecture, arguments = timm.models.load_model_config_from_hf(spec.model.partition(":")[2])
    except Exception as error:  # hubs fail in ways that no list of exceptions covers
        raise WeightsError(f"{spec.model}: its configuration cannot be loaded ({first_line(error)})") from error
    return {"architecture": architecture, "arguments": dict(arguments or {})}


def classifier_from_weights(
    spec: ModelSpec, weights: bytes, preprocessing: dict[str, Any], *, hub_config: dict[str, Any], classes: int
) -> Classifier:
    """The model that `load_model` loaded, from its stored weights; reads no hub and no checkpoint.

    Args:
        spec: The model.
        weights: Its weights, as `serialize_weights` wrote them.
        preprocessing: Its `Classifier.preprocessing`.
        hub_config: Its `hub_config` when it was loaded.
        classes: Its number of classes.

    Raises:
        WeightsError: The weights do not fit the architecture.
    """
    network = _build_network(spec, classes, hub_config)
    load_serialized_weights(network, weights, name=spec.name, architecture=spec.model)
    classifier = Classifier(network, preprocessing)
    _check_forward_pass(spec, classifier, classes)
    return classifier


def load_purifier(purifier: Purifier) -> nn.Module:
    """Loads a purifier's network from its checkpoint: frozen, on the CPU.

    Raises:
        WeightsError: The checkpoint does not exist, or is not the published one.
    """
    network = purifier.build_network()
    weights = purifier.select_weights(read_state_dict(purifier.checkpoint))
    load_strictly(network, weights, checkpoint=purifier.checkpoint, architecture=type(purifier).__name__)
    return network.requires_grad_(False).eval()


def purifier_from_weights(purifier: Purifier, weights: bytes) -> nn.Module:
    """The network that `load_purifier` loaded, from its stored weights.

    Raises:
        WeightsError: The weights do not fit.
    """
    network = purifier.build_network()
    load_serialized_weights(network, weights, name=purifier.checkpoint, architecture=type(purifier).__name__)
    return network.requires_grad_(False).eval()


def model_identity(spec: ModelSpec, classifier: Classifier) -> dict[str, Any]:
    """Everything that determines a network's output: architecture, digest of the weights, preprocessing."""
    return {"model": spec.model, "digest": classifier.digest, **classifier.preprocessing}


def defense_identity(spec: ModelSpec, digests: Mapping[str, str]) -> dict[str, Any]:
    """What a target's defenses add to its identity; empty without defenses.

    Args:
        spec: The model.
        digests: Digests of its purifiers, by checkpoint; see `describe_defenses`.
    """
    if isinstance(spec, TargetSpec) and spec.defenses:
        return {"defenses": describe_defenses(spec.defenses, digests), "defense_seed": spec.defense_seed}
    return {}


def require_enlarged_input(name: str, classifier: Classifier, rate: float) -> None:
    """Tries a source on an input `rate` times as large as its own, as diverse input without resizing back does.

    Raises:
        WeightsError: The network takes one input size only.
    """
    try:
        with torch.inference_mode():
            classifier.enlarged(rate)(_grey_image())
    except Exception as error:  # each architecture fails in its own way
        side = classifier.preprocessing["input_size"]
        raise WeightsError(
            f"{name}: takes only images of {side} x {side}, and di shows it larger ones ({first_line(error)}); "
            'set variant = "resize-back"'
        ) from error


def _load_pretrained(spec: ModelSpec) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(spec.model, pretrained=True)
    except Exception as error:  # hubs, proxies and caches fail in ways that no list of exceptions covers
        raise WeightsError(
            f"{spec.model}: its pretrained weights cannot be loaded ({first_line(error)}); connect to the model hub "
            "once so that they are cached, or give a checkpoint in the recipe"
        ) from error
    return network


def _load_from_checkpoint(spec: ModelSpec, classes: int) -> nn.Module:
    assert spec.checkpoint is not None
    network = _build_network(spec, classes)
    load_strictly(network, read_state_dict(spec.checkpoint), checkpoint=spec.checkpoint, architecture=spec.model)
    return network


def _build_network(spec: ModelSpec, classes: int, hub_config: dict[str, Any] | None = None) -> nn.Module:
    """The network with random weights; without a `hub_config`, timm fetches that of a hub's model itself."""
    if spec.model.startswith(TORCHVISION_PREFIX):
        name = spec.model.removeprefix(TORCHVISION_PREFIX)
        return cast("nn.Module", torchvision.models.get_model(name, weights=None, num_classes=classes))
    arguments = {"num_classes": classes, **(hub_config["arguments"] if hub_config else {})}
    name = hub_config["architecture"] if hub_config else spec.model
    return cast("nn.Module", timm.create_model(name, pretrained=False, **arguments))


def _preprocessing(spec: ModelSpec, network: nn.Module) -> dict[str, Any]:
    is_torchvision = spec.model.startswith(TORCHVISION_PREFIX)
    config = {} if is_torchvision else timm.data.resolve_model_data_config(network, use_test_size=True)
    preprocessing = {
        "policy": spec.policy,
        "input_size": spec.input_size or config["input_size"][-1],
        "interpolation": spec.interpolation or config.get("interpolation", "bilinear"),
        "mean": list(spec.mean or config["mean"]),
        "std": list(spec.std or config["std"]),
    }
    if preprocessing["interpolation"] not in ("bilinear", "bicubic"):
        raise RecipeError(
            f"{spec.name}: its data config resizes by {preprocessing['interpolation']!r}; "
            'set interpolation = "bilinear" or "bicubic" for it'
        )
    return preprocessing


def _check_forward_pass(spec: ModelSpec, classifier: Classifier, classes: int) -> None:
    with torch.inference_mode():
        model_classes = classifier(_grey_image()).shape[-1]
    if model_classes != classes:
        raise WeightsError(
            f"{spec.name}: it has {model_classes} classes, the data {classes}; set data.classes or another model"
        )
    if isinstance(spec, TargetSpec) and spec.defenses:
        _check_padded_input(spec, classifier)


def _check_padded_input(spec: TargetSpec, classifier: Classifier) -> None:
    """Tries a network on the input sizes of its random resizing and padding."""
    paddings = [replace(defense, draws=1) for defense in spec.defenses if isinstance(defense, RandomResizePad)]
    try:
        with torch.inference_mode():
            predict_defended(classifier, _grey_image(), paddings, Draws(0, ["grey"]))
    except Exception as error:  # each architecture fails in its own way
        raise WeightsError(
            f"{spec.name}: the network does not take the input sizes of rp ({first_line(error)})"
        ) from error


def _grey_image() -> torch.Tensor:
    return torch.full((1, 3, 224, 224), 0.5)
