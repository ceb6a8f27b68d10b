"""Models: a timm tag, or an architecture with the user's own checkpoint, as a classifier that takes [0, 1].

Preprocessing lives inside the model, so that attacks and scores see pixels in [0, 1] and nothing else, and every
target resizes and normalises as its own weights expect, under a policy that stands in every row of the results.
"""

import difflib
import functools
import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
import timm
import timm.data
import timm.models
import torch
import torchvision.models
from torch import Tensor, nn

from pipeline.attack.draws import Draws
from pipeline.attack.ensemble import Fuse
from pipeline.errors import GnpError, RecipeError, WeightsError
from pipeline.models.classifier import Classifier, Policy
from pipeline.models.defenses import (
    DEFENSES,
    BitDepth,
    Defense,
    FeatureDistillation,
    Jpeg,
    Median,
    RandomisedSmoothing,
    RandomResizePad,
    TotalVariation,
    answer,
    described,
)
from pipeline.models.purifiers import GuidedDenoiser, Purifier, RepresentationPurifier
from pipeline.storage import Storage, split

# It warns of every try of its own; that they failed is ours to tell, in one line.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

_TORCHVISION = "torchvision/"
_HUB = ("hf-hub:", "hf_hub:")


@dataclass(frozen=True)
class ModelSpec:
    """A model that a recipe names.

    Attributes:
        model: A timm tag such as `resnet50.tv_in1k`; or, with a checkpoint, a timm or torchvision architecture
            (`tf_efficientnet_lite0`, `torchvision/squeezenet1_1`).
        name: What results call it; by default `model`.
        checkpoint: A `.safetensors` or `.pth` file, in a folder or on S3; its keys must be exactly the model's.
        policy: How an image becomes the model's input. `direct`: resized to the model's input size, every perturbed
            pixel kept. `crop`: shortest side to 256, centre crop 224, then the input size, as the transfer literature
            does it; the border is discarded.
        input_size: Side of the model's square input in pixels; by default the model's own data config.
        interpolation: Filter of the resize; by default the model's own.
        mean: Per-channel mean that is subtracted, for pixels in [0, 1]; by default the model's own.
        std: Per-channel divisor, for pixels in [0, 1]; by default the model's own.
    """

    model: str
    name: str = ""
    checkpoint: str | None = None
    policy: Policy = "direct"
    input_size: int | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.model)
        if len(self.name) > 100:
            raise ValueError(f"name = {self.name[:30]!r}…: longer than 100 characters")
        if self.input_size is not None and self.input_size < 1:
            raise ValueError(f"input_size = {self.input_size}: must be at least 1 pixel")
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std = {list(self.std)}: must be positive numbers")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean = {list(self.mean)}: must be numbers")


@dataclass(frozen=True)
class TargetSpec(ModelSpec):
    """A model that transfer is scored on, as it is or behind defenses.

    Attributes:
        defense: Defenses by name, in order, joined by `+`: `bits+jpeg`; see `pipeline.models.defenses`.
        defense_seed: Seed of what they draw.
        rp: Settings of random resizing and padding; by default the published.
        bits: Of the reduced bit depth.
        jpeg: Of the compression.
        fd: Of the feature distillation.
        tv: Of the smoothing by total variation.
        median: Of the median filter.
        smoothing: Of the randomised smoothing.
        nrp: Of the representation purifier, with its checkpoint.
        hgd: Of the guided denoiser, with its checkpoint.
    """

    defense: str = ""
    defense_seed: int = 0
    rp: RandomResizePad | None = None
    bits: BitDepth | None = None
    jpeg: Jpeg | None = None
    fd: FeatureDistillation | None = None
    tv: TotalVariation | None = None
    median: Median | None = None
    smoothing: RandomisedSmoothing | None = None
    nrp: RepresentationPurifier | None = None
    hgd: GuidedDenoiser | None = None

    def __post_init__(self) -> None:
        named = self.defense.split("+") if self.defense else []
        if any(name not in DEFENSES for name in named) or len(set(named)) != len(named):
            raise ValueError(
                f"defense = {self.defense!r}: expected any of {', '.join(DEFENSES)}, each once, joined by +"
            )
        for name in DEFENSES:
            if getattr(self, name) is not None and name not in named:
                raise ValueError(f"{name} is set, but defense = {self.defense!r} does not name it")
        if not self.name and self.defense:
            object.__setattr__(self, "name", f"{self.model} behind {self.defense}")
        _ = self.defenses  # refuses what cannot be left to its defaults
        super().__post_init__()

    @property
    def defenses(self) -> tuple[Defense | Purifier, ...]:
        """The defenses, in order."""
        return tuple(getattr(self, name) or DEFENSES[name]() for name in self.defense.split("+") if name)


@dataclass(frozen=True)
class EnsembleSpec:
    """Several models that a recipe has attacked as one source.

    Attributes:
        ensemble: The models, all on one device.
        fuse: What is averaged: `logits`, `probabilities` or `losses`.
        name: What results call it; by default the models' names, joined by `+`.
    """

    ensemble: tuple[ModelSpec, ...]
    fuse: Fuse = "logits"
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.ensemble) < 2:
            raise ValueError(f"ensemble: {len(self.ensemble)} models are named; an ensemble has at least 2")
        if len({replace(spec, name="x") for spec in self.ensemble}) < len(self.ensemble):
            raise ValueError("ensemble: one model is named twice, and would count twice")
        if not self.name:
            object.__setattr__(self, "name", "+".join(spec.name for spec in self.ensemble))
        if len(self.name) > 100:
            raise ValueError(f"name = {self.name[:30]!r}…: longer than 100 characters; give the ensemble a shorter one")


def check(spec: ModelSpec) -> None:
    """Refuses a model that cannot exist, before any work starts.

    Raises:
        RecipeError: The tag or architecture is unknown; the nearest names are suggested.
    """
    if spec.model.startswith(_TORCHVISION):
        name = spec.model.removeprefix(_TORCHVISION)
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise RecipeError(f"unknown torchvision architecture {name!r}{_nearest(name, known)}")
        if spec.checkpoint is None:
            raise RecipeError(f"{spec.model!r} needs a checkpoint: only timm tags bring their weights")
        if None in (spec.input_size, spec.mean, spec.std):
            raise RecipeError(
                f"{spec.model!r} needs input_size, mean and std: torchvision's models carry no data config"
            )
    elif spec.model.startswith(_HUB):
        return  # a repository's name can only be checked by asking the hub
    elif spec.checkpoint is not None:
        if not timm.is_model(spec.model):
            raise RecipeError(f"unknown timm architecture {spec.model!r}{_nearest(spec.model, timm.list_models())}")
    else:
        tags = timm.list_pretrained()
        if spec.model not in tags:
            if timm.is_model(spec.model) and "." not in spec.model:
                full = [tag for tag in tags if tag.split(".")[0] == spec.model.split(".")[0]]
                choice = (
                    f"name its weights: one of {', '.join(full)}" if full else "timm has no weights: give a checkpoint"
                )
                raise RecipeError(f"{spec.model!r} names an architecture, not weights, which would move; {choice}")
            raise RecipeError(f"unknown timm tag {spec.model!r}{_nearest(spec.model, tags)}")


def load(spec: ModelSpec, *, classes: int = 1000) -> Classifier:
    """The model with its weights, frozen, in eval mode, on the CPU; tried once on a grey image.

    Args:
        spec: Which model.
        classes: How many classes the labels know; the model must know as many.

    Raises:
        WeightsError: The weights cannot be had, do not fit the architecture, or know other classes.
        RecipeError: The model's preprocessing cannot be carried out as it stands.
    """
    network = _with_checkpoint(spec, classes) if spec.checkpoint else _pretrained(spec)
    classifier = Classifier(network, _preprocessing(spec, network))
    _try(spec, classifier, classes)
    return classifier


def blueprint(spec: ModelSpec) -> dict[str, Any]:
    """What a hub's repository says its network is: a timm architecture and arguments. Empty where the name says it.

    Raises:
        WeightsError: The hub cannot be asked.
    """
    if not spec.model.startswith(_HUB):
        return {}
    try:
        _, architecture, arguments = timm.models.load_model_config_from_hf(spec.model.partition(":")[2])
    except Exception as error:  # as of weights
        raise WeightsError(f"{spec.model}: its configuration cannot be had ({_gist(error)})") from error
    return {"architecture": architecture, "arguments": dict(arguments or {})}


def restore(
    spec: ModelSpec, state: bytes, preprocessing: dict[str, Any], *, built_from: dict[str, Any], classes: int
) -> Classifier:
    """A model as `load` gave it, from its weights as `dump` wrote them: no hub and no checkpoint is asked.

    Args:
        spec: Which model.
        state: Its weights.
        preprocessing: As `Classifier` had it.
        built_from: Its `blueprint`, as it was when it was loaded.
        classes: How many it knows.

    Raises:
        WeightsError: The weights do not fit the architecture.
    """
    network = _architecture(spec, classes, built_from)
    try:
        network.load_state_dict(safetensors.torch.load(state), strict=True)
    except Exception as error:  # damaged bytes fail in safetensors, another timm's architecture in torch
        raise WeightsError(f"{spec.name}: its stored weights do not fit {spec.model} ({_gist(error)})") from error
    classifier = Classifier(network, preprocessing)
    _try(spec, classifier, classes)
    return classifier


def dump(network: nn.Module) -> bytes:
    """A network's state dict as a safetensors file; the same weights give the same bytes."""
    state = network.state_dict()
    # Cloned, as safetensors refuses tensors that share memory; contiguous, as it refuses channels-last.
    return bytes(safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in sorted(state.items())}))


def _try(spec: ModelSpec, classifier: Classifier, classes: int) -> None:
    with torch.inference_mode():
        width = classifier(torch.full((1, 3, 224, 224), 0.5)).shape[-1]
    if width != classes:
        raise WeightsError(
            f"{spec.name}: it knows {width} classes, the data {classes}; set data.classes or another model"
        )
    if isinstance(spec, TargetSpec) and spec.defenses:
        _try_defenses(spec, classifier)


def _try_defenses(spec: TargetSpec, classifier: Classifier) -> None:
    once = [replace(each, draws=1) for each in spec.defenses if isinstance(each, RandomResizePad)]
    try:
        with torch.inference_mode():
            answer(classifier, torch.full((1, 3, 224, 224), 0.5), once, Draws(0, ["grey"]))
    except Exception as error:  # a network of one size says so in ways of its own
        raise WeightsError(f"{spec.name}: the network does not take what rp gives it ({_gist(error)})") from error


def require_enlarged(name: str, classifier: Classifier, rate: float) -> None:
    """Tries a source on a larger input than its own, as a view shows it.

    Raises:
        WeightsError: It takes none.
    """
    try:
        with torch.inference_mode():
            classifier.enlarged(rate)(torch.full((1, 3, 224, 224), 0.5))
    except Exception as error:  # a network of one size says so in ways of its own
        side = classifier.preprocessing["input_size"]
        raise WeightsError(
            f"{name}: takes images of {side} x {side} alone, and di shows it larger ones ({_gist(error)}); "
            'set variant = "resize-back"'
        ) from error


def _preprocessing(spec: ModelSpec, network: nn.Module) -> dict[str, Any]:
    config = (
        {} if spec.model.startswith(_TORCHVISION) else timm.data.resolve_model_data_config(network, use_test_size=True)
    )
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


def identity(spec: ModelSpec, classifier: Classifier) -> dict[str, Any]:
    """Everything about a network that determines its output: architecture, weights' digest and preprocessing."""
    return {"model": spec.model, "digest": classifier.digest, **classifier.preprocessing}


def behind(spec: ModelSpec, digests: Mapping[str, str]) -> dict[str, Any]:
    """What a target's defenses add to its identity; nothing where it has none.

    Args:
        spec: The target.
        digests: Of its purifiers' checkpoints; see `defenses.described`.
    """
    if isinstance(spec, TargetSpec) and spec.defenses:
        return {"defenses": described(spec.defenses, digests), "defense_seed": spec.defense_seed}
    return {}


def load_purifier(purifier: Purifier) -> nn.Module:
    """A purifier's network with its weights, frozen, on the CPU.

    Raises:
        WeightsError: The checkpoint is not there, or not the published one.
    """
    network, state = purifier.network(_read_state(purifier.checkpoint))
    _fit(purifier.checkpoint, type(purifier).__name__, network, state)
    return network.requires_grad_(False).eval()


def restore_purifier(purifier: Purifier, state: bytes) -> nn.Module:
    """A purifier as `load_purifier` gave it, from its weights as `dump` wrote them.

    Raises:
        WeightsError: The weights do not fit.
    """
    network, _ = purifier.network()
    try:
        network.load_state_dict(safetensors.torch.load(state), strict=True)
    except Exception as error:  # damaged bytes
        raise WeightsError(f"{purifier.checkpoint}: its stored weights do not fit ({_gist(error)})") from error
    return network.requires_grad_(False).eval()


def class_name(index: int) -> str:
    """ImageNet-1k's name of a class index; the number itself where there is none."""
    names = _imagenet()
    return str(names.index_to_description(index)) if 0 <= index < names.num_classes() else str(index)


@functools.cache
def _imagenet() -> Any:
    return timm.data.ImageNetInfo()


def _pretrained(spec: ModelSpec) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(spec.model, pretrained=True)
    except Exception as error:  # hubs, proxies and caches fail in ways that no list of exceptions covers
        raise WeightsError(
            f"{spec.model}: its pretrained weights cannot be had ({_gist(error)}); connect to the model hub once so "
            "that they are cached, or give a checkpoint in the recipe"
        ) from error
    return network


def _with_checkpoint(spec: ModelSpec, classes: int) -> nn.Module:
    assert spec.checkpoint is not None
    network = _architecture(spec, classes)
    _fit(spec.checkpoint, spec.model, network, _read_state(spec.checkpoint))
    return network


def _fit(checkpoint: str, architecture: str, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state that is exactly the network's.

    Raises:
        WeightsError: It is another's; says by which keys.
    """
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise WeightsError(
            f"{checkpoint}: does not fit {architecture}: {len(missing)} keys missing ({', '.join(missing[:3])}…), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])}…)"
        )
    unfit = [key for key in own if own[key].shape != state[key].shape]
    if unfit:
        raise WeightsError(
            f"{checkpoint}: does not fit {architecture}: {unfit[0]} has shape {tuple(state[unfit[0]].shape)}, "
            f"{tuple(own[unfit[0]].shape)} is wanted"
        )
    network.load_state_dict(state, strict=True)


def _architecture(spec: ModelSpec, classes: int, built_from: dict[str, Any] | None = None) -> nn.Module:
    """The network with random weights; the hub is asked for a `blueprint` where none is given."""
    if spec.model.startswith(_TORCHVISION):
        name = spec.model.removeprefix(_TORCHVISION)
        return cast("nn.Module", torchvision.models.get_model(name, weights=None, num_classes=classes))
    arguments = {"num_classes": classes, **(built_from["arguments"] if built_from else {})}
    name = built_from["architecture"] if built_from else spec.model
    return cast("nn.Module", timm.create_model(name, pretrained=False, **arguments))


def _read_state(checkpoint: str) -> dict[str, Tensor]:
    """A checkpoint's tensors, by timm's own reader (safetensors, or torch with weights_only)."""
    folder, name = split(checkpoint)
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
        raise WeightsError(f"{checkpoint}: not a readable checkpoint ({_gist(error)})") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{checkpoint}: not a checkpoint: it holds something else than tensors by name")
    return cast("dict[str, Tensor]", state)


def _gist(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
