"""Loads models: from the hub or a checkpoint, and again from stored weights, as classifiers of images in [0, 1].

Preprocessing lives inside the model: attacks and scores see pixels in [0, 1] and nothing else, and every target resizes
and normalises as its weights expect, under a policy that every row of the results records.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any, cast

import timm
import timm.data
import timm.models
from torch import nn

from pipeline.errors import RecipeError, WeightsError
from pipeline.models.checkpoint import (
    load_serialized_weights,
    load_weights,
    read_serialized_weights,
    require_finite_weights,
)
from pipeline.models.checkpoint_file import first_line, read_checkpoint
from pipeline.models.classifier import Classifier
from pipeline.models.defenses import describe_defenses
from pipeline.models.purifiers import Purifier
from pipeline.models.spec import HUB_PREFIXES, ModelSpec, TargetSpec
from pipeline.models.state_search import candidates
from pipeline.models.torchvision_models import (
    TORCHVISION_PREFIX,
    architecture_of,
    args_of_file,
    build_torchvision_model,
    download_weights,
    library_args,
    library_preprocessing,
    library_weights,
    weights_name_of,
)
from pipeline.models.trial import check_forward_pass

# It warns at every failed attempt; the error below says so in one line.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def load_model(spec: ModelSpec, *, classes: int = 1000) -> Classifier:
    """Loads a model from the hub or its checkpoint: frozen, in eval mode, on the CPU, tried on a grey image.

    Args:
        spec: The model.
        classes: Number of classes of the labels, which the model must have.

    Raises:
        WeightsError: The weights cannot be loaded, do not fit the architecture, or have another number of classes.
        RecipeError: The model's own preprocessing is not supported, or a setting is missing that the weights need.
    """
    if spec.checkpoint is not None:
        classifier = _load_from_checkpoint(spec, spec.checkpoint, classes)
    elif spec.model.startswith(TORCHVISION_PREFIX):
        classifier = _load_library_weights(spec)
    else:
        network = _load_pretrained(spec)
        classifier = Classifier(network, _preprocessing(spec, network), spec.args)
    require_finite_weights(classifier.network, spec.name)
    check_forward_pass(spec, classifier, classes)
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
    spec: ModelSpec,
    weights: bytes,
    preprocessing: dict[str, Any],
    *,
    args: Mapping[str, Any],
    hub_config: dict[str, Any],
    classes: int,
) -> Classifier:
    """The model that `load_model` loaded, from its stored weights; reads no hub and no checkpoint.

    Args:
        spec: The model.
        weights: Its weights, as `serialize_weights` wrote them.
        preprocessing: Its `Classifier.preprocessing`.
        args: Its `Classifier.args`.
        hub_config: Its `hub_config` when it was loaded.
        classes: Its number of classes.

    Raises:
        WeightsError: The weights do not fit the architecture.
    """
    state = read_serialized_weights(weights, name=spec.name)
    network = _build_network(spec, classes, args, keys=state, hub_config=hub_config)
    load_serialized_weights(network, state, name=spec.name, architecture=spec.model)
    classifier = Classifier(network, preprocessing, args)
    check_forward_pass(spec, classifier, classes)
    return classifier


def load_purifier(purifier: Purifier) -> nn.Module:
    """Loads a purifier's network from its checkpoint: frozen, on the CPU.

    Raises:
        WeightsError: The checkpoint does not exist, or is not the published one.
    """
    network = purifier.build_network()
    contents = candidates(read_checkpoint(purifier.checkpoint).contents)
    selected = {name: purifier.select_weights(state) for name, state in contents.items()}
    load_weights(network, selected, checkpoint=purifier.checkpoint, architecture=type(purifier).__name__)
    require_finite_weights(network, purifier.checkpoint)
    return network.requires_grad_(False).eval()


def purifier_from_weights(purifier: Purifier, weights: bytes) -> nn.Module:
    """The network that `load_purifier` loaded, from its stored weights.

    Raises:
        WeightsError: The weights do not fit.
    """
    network = purifier.build_network()
    state = read_serialized_weights(weights, name=purifier.checkpoint)
    load_serialized_weights(network, state, name=purifier.checkpoint, architecture=type(purifier).__name__)
    return network.requires_grad_(False).eval()


def model_identity(spec: ModelSpec, classifier: Classifier) -> dict[str, Any]:
    """Everything that determines a network's output: architecture, digest of the weights, preprocessing."""
    args = {"args": classifier.args} if classifier.args else {}
    return {"model": spec.model, "digest": classifier.digest, **classifier.preprocessing, **args}


def defense_identity(spec: ModelSpec, digests: Mapping[str, str]) -> dict[str, Any]:
    """What a target's defenses add to its identity; empty without defenses.

    Args:
        spec: The model.
        digests: Digests of its purifiers, by checkpoint; see `describe_defenses`.
    """
    if isinstance(spec, TargetSpec) and spec.defenses:
        return {"defenses": describe_defenses(spec.defenses, digests), "defense_seed": spec.defense_seed}
    return {}


def _load_pretrained(spec: ModelSpec) -> nn.Module:
    if spec.args:
        _build_network(spec, None, spec.args)  # refuses arguments that the architecture does not take by name
    try:
        network: nn.Module = timm.create_model(spec.model, pretrained=True, **spec.args)
    except Exception as error:  # hubs, proxies and caches fail in ways that no list of exceptions covers
        raise WeightsError(
            f"{spec.model}: its pretrained weights cannot be loaded ({first_line(error)}); connect to the model hub "
            "once so that they are cached, or give a checkpoint in the recipe"
        ) from error
    return network


def _load_library_weights(spec: ModelSpec) -> Classifier:
    """The library's own weights of a torchvision model, with the preprocessing and the arguments of the library."""
    architecture = architecture_of(spec.model)
    weights = library_weights(architecture)[weights_name_of(spec.model)]
    args = {**library_args(architecture, weights), **spec.args}
    state = download_weights(weights)
    network = _build_network(spec, len(weights.meta["categories"]), args, keys=state)
    load_weights(network, state, checkpoint=weights.url, architecture=spec.model)
    return Classifier(network, _preprocessing(spec, network, library_preprocessing(weights)), args)


def _load_from_checkpoint(spec: ModelSpec, checkpoint: str, classes: int) -> Classifier:
    file = read_checkpoint(checkpoint)
    args: Mapping[str, Any] = spec.args
    if spec.model.startswith(TORCHVISION_PREFIX):
        args = args_of_file(architecture_of(spec.model), args, file.sha256, name=spec.name)
    keys = {key for state in candidates(file.contents).values() for key in state}
    network = _build_network(spec, classes, args, keys=keys)
    preprocessing = _preprocessing(spec, network)
    load_weights(
        network,
        file.contents,
        checkpoint=checkpoint,
        architecture=spec.model,
        choice=spec.weights,
        mean_std=(preprocessing["mean"], preprocessing["std"]),
    )
    return Classifier(network, preprocessing, args)


def _build_network(
    spec: ModelSpec,
    classes: int | None,
    args: Mapping[str, Any],
    *,
    keys: Collection[str] = (),
    hub_config: dict[str, Any] | None = None,
) -> nn.Module:
    """The network with random weights.

    Args:
        spec: The model.
        classes: Its number of classes; by default the architecture's.
        args: Arguments of its constructor.
        keys: Keys of the weights that it will get.
        hub_config: Its `hub_config`; without, timm fetches that of a hub's model itself.
    """
    config = hub_config or {"architecture": spec.model, "arguments": {}}
    arguments = {} if classes is None else {"num_classes": classes}
    arguments |= config["arguments"]
    try:
        if spec.model.startswith(TORCHVISION_PREFIX):
            return build_torchvision_model(architecture_of(spec.model), {**arguments, **args}, keys=keys)
        return cast("nn.Module", timm.create_model(config["architecture"], pretrained=False, **{**arguments, **args}))
    except Exception as error:  # constructors fail in their own ways on arguments, and hubs on theirs
        if args:
            raise RecipeError(
                f"{spec.name}: args = {dict(args)}: {spec.model} refuses ({first_line(error)})"
            ) from error
        raise WeightsError(f"{spec.model}: cannot be built ({first_line(error)})") from error


def _preprocessing(spec: ModelSpec, network: nn.Module, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The spec's preprocessing, completed by a data config; by default the one that timm has for the network."""
    if config is None:
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
