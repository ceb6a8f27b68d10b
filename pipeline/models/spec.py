"""Models as a recipe names them: settings of sources, targets and ensembles, and the check that a model exists."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import timm

from pipeline.attack.ensemble import Fuse
from pipeline.errors import RecipeError
from pipeline.models.classifier import Policy
from pipeline.models.defenses import DEFENSES, Defense, RandomisedSmoothing, RandomResizePad
from pipeline.models.image_filters import BitDepth, FeatureDistillation, Jpeg, Median, TotalVariation
from pipeline.models.purifiers import GuidedDenoiser, Purifier, RepresentationPurifier
from pipeline.models.settings import require_setting
from pipeline.models.torchvision_models import (
    TORCHVISION_PREFIX,
    architecture_of,
    architectures,
    library_weights,
    weights_name_of,
)

# What a model's name begins with that timm reads from a hub.
HUB_PREFIXES = ("hf-hub:", "hf_hub:")

# Arguments of constructors that other settings stand for, or that make another thing than a classifier of images.
_NOT_ARGS = {
    *("num_classes", "pretrained", "weights", "progress", "checkpoint_path", "cache_dir", "pretrained_cfg"),
    *("pretrained_cfg_overlay", "model_name", "in_chans", "features_only", "out_indices", "scriptable", "exportable"),
}


@dataclass(frozen=True)
class ModelSpec:
    """A model that a recipe names.

    Attributes:
        model: A timm tag such as `resnet50.tv_in1k`, or torchvision's own weights such as
            `torchvision/resnet50.IMAGENET1K_V2`; or, with a checkpoint, a timm or torchvision architecture
            (`tf_efficientnet_lite0`, `torchvision/squeezenet1_1`).
        name: Its name in results; by default `model`.
        checkpoint: A file of weights, in a folder or on S3: safetensors, or what torch.save wrote. Every key of the
            model must be in it, under any prefix or nested name, and no other.
        policy: How an image becomes the model's input. `direct`: resized to the model's input size, every perturbed
            pixel kept. `crop`: shortest side to 256, centre crop 224, then the input size, as the transfer literature
            does it; the border is discarded.
        input_size: Side of the model's square input in pixels; by default the model's own data config.
        interpolation: Filter of the resize; by default the model's own.
        mean: Per-channel mean that is subtracted, for pixels in [0, 1]; by default the model's own.
        std: Per-channel divisor, for pixels in [0, 1]; by default the model's own.
        weights: Which weights of a checkpoint are taken where it holds several that differ: `ema`, or names of nested
            tables joined by dots.
        args: Arguments of the architecture's constructor that change its function and are not in its weights, such as
            `{ transform_input = true, bn_eps = 0.001, pad_type = "same", img_size = 384 }`.
    """

    model: str
    name: str = ""
    checkpoint: str | None = None
    policy: Policy = "direct"
    input_size: int | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    weights: str = ""
    # Not hashed, as a dictionary cannot be; specs with other arguments are still not equal.
    args: Mapping[str, bool | int | float | str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.model)
        if len(self.name) > 100:
            raise ValueError(f"name = {self.name[:30]!r}…: longer than 100 characters")
        if self.input_size is not None:
            require_setting(self.input_size >= 1, "input_size", self.input_size, "must be at least 1 pixel")
        if self.std is not None:
            positive = all(0 < value < math.inf for value in self.std)
            require_setting(positive, "std", list(self.std), "must be positive numbers")
        if self.mean is not None:
            require_setting(all(map(math.isfinite, self.mean)), "mean", list(self.mean), "must be numbers")
        if self.weights and self.checkpoint is None:
            raise ValueError(f"weights = {self.weights!r}: chooses among a checkpoint's, and no checkpoint is set")
        for argument, value in self.args.items():
            if argument in _NOT_ARGS:
                raise ValueError(f"args = {{ {argument} = … }}: not an argument to set here")
            # A constructor would take the text "false" as true.
            is_plain = isinstance(value, str) and value not in ("true", "false")
            if not is_plain and not (isinstance(value, bool | int | float) and math.isfinite(value)):
                raise ValueError(f"args = {{ {argument} = {value!r} }}: write true or false, a number, or a text")


def recorded_settings(spec: ModelSpec) -> dict[str, Any]:
    """A model's settings as they are recorded; those that came after version 0.1 only where they are set."""
    later = ("weights", "args")
    settings = {each.name: getattr(spec, each.name) for each in fields(ModelSpec)}
    return {name: value for name, value in settings.items() if value or name not in later}


@dataclass(frozen=True)
class TargetSpec(ModelSpec):
    """A model that transfer is scored on, undefended or behind defenses.

    Attributes:
        defense: Defenses by name, in order, joined by `+`: `bits+jpeg`; see `pipeline.models.defenses`.
        defense_seed: Seed of the defenses' random draws.
        rp: Settings of random resizing and padding; by default the published ones.
        bits: Settings of the bit depth reduction.
        jpeg: Settings of the JPEG compression.
        fd: Settings of the feature distillation.
        tv: Settings of the total variation smoothing.
        median: Settings of the median filter.
        smoothing: Settings of the randomised smoothing.
        nrp: Settings of the representation purifier; its checkpoint must be given.
        hgd: Settings of the guided denoiser; its checkpoint must be given.
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
        names = self.defense.split("+") if self.defense else []
        if any(name not in DEFENSES for name in names) or len(set(names)) != len(names):
            raise ValueError(
                f"defense = {self.defense!r}: expected any of {', '.join(DEFENSES)}, each once, joined by +"
            )
        for name in DEFENSES:
            if getattr(self, name) is not None and name not in names:
                raise ValueError(f"{name} is set, but defense = {self.defense!r} does not name it")
        if not self.name and self.defense:
            object.__setattr__(self, "name", f"{self.model} behind {self.defense}")
        _ = self.defenses  # raises where a required setting is missing
        super().__post_init__()

    @property
    def defenses(self) -> tuple[Defense | Purifier, ...]:
        """The defenses with their settings, in order."""
        return tuple(getattr(self, name) or DEFENSES[name]() for name in self.defense.split("+") if name)


@dataclass(frozen=True)
class EnsembleSpec:
    """Several models that are attacked as one source.

    Attributes:
        ensemble: The models, all on one device.
        fuse: What is averaged: `logits`, `probabilities` or `losses`.
        name: Its name in results; by default the models' names, joined by `+`.
    """

    ensemble: tuple[ModelSpec, ...]
    fuse: Fuse = "logits"
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.ensemble) < 2:
            raise ValueError(f"ensemble: {len(self.ensemble)} models are named; an ensemble has at least 2")
        if len({replace(spec, name="x") for spec in self.ensemble}) < len(self.ensemble):
            raise ValueError("ensemble: a model is named twice, and would count twice")
        if not self.name:
            object.__setattr__(self, "name", "+".join(spec.name for spec in self.ensemble))
        if len(self.name) > 100:
            raise ValueError(f"name = {self.name[:30]!r}…: longer than 100 characters; give the ensemble a shorter one")


def require_model_exists(spec: ModelSpec) -> None:
    """Refuses a model that cannot exist, before any work starts.

    Raises:
        RecipeError: The tag or architecture is unknown; the nearest names are suggested.
    """
    if spec.model.startswith(TORCHVISION_PREFIX):
        _require_torchvision_model(spec)
    elif spec.model.startswith(HUB_PREFIXES):
        return  # only the hub knows its repositories
    elif spec.checkpoint is not None:
        if not timm.is_model(spec.model):
            raise RecipeError(f"unknown timm architecture {spec.model!r}{_suggestion(spec.model, timm.list_models())}")
        if "." in spec.model and spec.model not in timm.list_pretrained():
            raise RecipeError(f"unknown timm tag {spec.model!r}{_suggestion(spec.model, timm.list_pretrained())}")
    else:
        _require_timm_tag(spec.model)


def _require_torchvision_model(spec: ModelSpec) -> None:
    name, weights = architecture_of(spec.model), weights_name_of(spec.model)
    if name not in architectures():
        raise RecipeError(f"unknown torchvision architecture {name!r}{_suggestion(name, architectures())}")
    own = list(library_weights(name))
    if weights:
        if spec.checkpoint is not None:
            raise RecipeError(f"{spec.model!r} names torchvision's own weights; leave out the checkpoint or .{weights}")
        if weights not in own:
            moves = (
                f", which would move; it has {', '.join(own)}" if weights == "DEFAULT" else _suggestion(weights, own)
            )
            raise RecipeError(f"torchvision has no {name} of {weights!r}{moves}")
        return
    if spec.checkpoint is None:
        examples = " or ".join(f"{spec.model}.{own_name}" for own_name in own)
        raise RecipeError(f"{spec.model!r} needs a checkpoint, or the name of torchvision's own weights: {examples}")
    if None in (spec.input_size, spec.mean, spec.std):
        raise RecipeError(
            f"{spec.model!r} needs input_size, mean and std: torchvision's architectures carry no data config"
        )


def _require_timm_tag(name: str) -> None:
    tags = timm.list_pretrained()
    if name in tags:
        return
    if timm.is_model(name) and "." not in name:
        full = [tag for tag in tags if tag.split(".")[0] == name]
        choice = f"name its weights: one of {', '.join(full)}" if full else "timm has no weights: give a checkpoint"
        raise RecipeError(f"{name!r} names an architecture, not weights, which would move; {choice}")
    raise RecipeError(f"unknown timm tag {name!r}{_suggestion(name, tags)}")


def _suggestion(name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""
