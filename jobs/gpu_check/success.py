"""Whether the fast paths fool other models as often as a plain loop: the demo's weights and photographs."""

import csv
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import timm.data
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import squeezenet1_1

from jobs.gpu_check.setting import Setting
from jobs.runners.benchmark import plain_loop
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.precision import Precision
from pipeline.attack.recipe import build
from pipeline.data import codec
from pipeline.data.codec import Preparation
from pipeline.models.classifier import Classifier
from pipeline.results.intervals import PooledGain

_EPSILON = Fraction(8, 255)
# Twenty photographs and three models tell no smaller loss from none.
_LEAST_GAIN = -0.1
_PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
# Caffe's convention, as in the demo's recipe.
_CAFFE: dict[str, Any] = {
    "policy": "direct",
    "input_size": 224,
    "interpolation": "bilinear",
    "mean": (0.48501961, 0.45795686, 0.40760392),
    "std": (0.00392157, 0.00392157, 0.00392157),
}


def success(setting: Setting) -> dict[str, Any]:
    """The gain of each precision over the plain loop in strict float32, with a paired interval over images."""
    if not (setting.assets / "weights" / "lite0.safetensors").exists():
        missing = f"{setting.assets} has no weights and photographs; make demo prepares them"
        return {"not measured": missing, "holds": setting.device.type == "cpu"}
    pixels, labels, keys = _photographs(setting)
    plain = _lite(setting, "lite0").to(setting.device)
    lites = [name for name in ("lite1", "lite2") if (setting.assets / "weights" / f"{name}.safetensors").exists()]
    targets = [*(_lite(setting, name) for name in lites), _squeezenet(setting)]
    models = [target.optimize_for(setting.device) for target in targets]
    images = codec.to_float(pixels)
    correct = _predictions(models, images) == labels.cpu()
    strict = plain_loop(plain, images, labels, steps=setting.sizes.steps, look_ahead=False)
    stored = codec.quantise(strict, pixels, _EPSILON)
    fooled_by_plain = _predictions(models, codec.to_float(stored)) != labels.cpu()
    fast = _lite(setting, "lite0").optimize_for(setting.device)
    found: dict[str, Any] = {"plain loop": _share(fooled_by_plain, correct)}
    holds = True
    base = fooled_by_plain
    for combination, parts in (
        ("mi", {}),
        ("gnp+mi", {"gnp": GradientNormPenalty(form="backward", norm="mean-abs")}),
    ):
        for precision in _PRECISIONS:
            attack = build(combination, epsilon=_EPSILON, steps=setting.sizes.steps, precision=precision, parts=parts)
            adversarial = codec.quantise(attack(fast, images, labels, keys), pixels, _EPSILON)
            fooled = _predictions(models, codec.to_float(adversarial)) != labels.cpu()
            if combination != "mi" and precision == "float32":
                base = fooled  # the plain loop has no penalty
            gain = _gain(fooled, base, correct)
            found[f"{combination}, {precision}"] = {**_share(fooled, correct), **gain}
            holds = holds and gain["interval"][1] >= 0 and (setting.device.type == "cpu" or gain["gain"] >= _LEAST_GAIN)
    return {"success": found, "holds": holds}


def _photographs(setting: Setting) -> tuple[Tensor, Tensor, list[str]]:
    """Pixels (N, 3, 224, 224) uint8, true classes, and keys, of the demo's photographs."""
    folder = setting.assets / "photographs"
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[: setting.sizes.photographs]
    pixels = torch.stack([codec.decode((folder / row["filename"]).read_bytes(), Preparation()) for row in rows])
    labels = torch.tensor([int(row["label"]) for row in rows])
    return pixels.to(setting.device), labels.to(setting.device), [row["filename"] for row in rows]


def _lite(setting: Setting, variant: str) -> Classifier:
    """EfficientNet-Lite."""
    network = timm.create_model(f"tf_efficientnet_{variant}").eval()
    network.load_state_dict(load_file(setting.assets / "weights" / f"{variant}.safetensors"))
    config = timm.data.resolve_model_data_config(network)
    settings = {key: config[key] for key in ("mean", "std", "interpolation")}
    return Classifier(network, {**settings, "input_size": config["input_size"][-1], "policy": "direct"})


def _squeezenet(setting: Setting) -> Classifier:
    network = squeezenet1_1().eval()
    network.load_state_dict(load_file(setting.assets / "weights" / "squeezenet.safetensors"))
    return Classifier(network, _CAFFE)


def _predictions(models: Sequence[Classifier], images: Tensor) -> Tensor:
    """The class that each model predicts, (models, N) int64 on the CPU."""
    with torch.inference_mode():
        return torch.stack([model(images).argmax(dim=1).cpu() for model in models])


def _share(fooled: Tensor, correct: Tensor) -> dict[str, int]:
    return {"fooled": int((fooled & correct).sum()), "pairs": int(correct.sum())}


def _gain(fooled: Tensor, base: Tensor, correct: Tensor) -> dict[str, Any]:
    """More pairs of an image and a model fooled than by the base, and a 95% interval over images."""
    gained = ((fooled & correct).int() - (base & correct).int()).sum(dim=0)
    pooled = PooledGain.over(np.asarray(gained), np.asarray(correct.sum(dim=0)))
    return {"gain": pooled.rate, "interval": pooled.interval or (-1.0, 1.0)}
