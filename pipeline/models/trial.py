"""Trials of a loaded model on a grey image, before a run depends on it."""

from dataclasses import replace

import torch

from pipeline.attack.draws import Draws
from pipeline.errors import WeightsError
from pipeline.models.checkpoint_file import first_line
from pipeline.models.classifier import Classifier
from pipeline.models.defenses import RandomResizePad
from pipeline.models.predict import predict_defended
from pipeline.models.spec import ModelSpec, TargetSpec


def check_forward_pass(spec: ModelSpec, classifier: Classifier, classes: int) -> None:
    """Tries a model, and the input sizes of its defenses, on a grey image.

    Raises:
        WeightsError: It fails, has another number of classes than the labels, or its logits are not finite.
    """
    try:
        with torch.inference_mode():
            logits = classifier(_grey_image())
        model_classes = logits.shape[1]
    except Exception as error:  # each architecture fails in its own way
        side = classifier.preprocessing["input_size"]
        raise WeightsError(
            f"{spec.name}: cannot classify an image of {side} x {side} ({first_line(error)}); see input_size and args"
        ) from error
    if model_classes != classes:
        raise WeightsError(
            f"{spec.name}: it has {model_classes} classes, the data {classes}; set data.classes or another model"
        )
    if not logits.isfinite().all():
        raise WeightsError(
            f"{spec.name}: its logits for a grey image are not finite; see its checkpoint, mean, std and args"
        )
    if isinstance(spec, TargetSpec) and spec.defenses:
        _check_padded_input(spec, classifier)


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
