"""A picture of one sample: original, perturbation, adversarial image, and every target's predictions."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from pipeline.analysis import drawing
from pipeline.analysis.report import budget
from pipeline.analysis.sample_view import Prediction, SampleView, short


def draw(
    view: SampleView, original: np.ndarray, adversarial: np.ndarray, *, class_name: Callable[[int], str]
) -> Figure:
    """A sample as three panels, with every target's prediction under the clean and the adversarial image.

    Args:
        view: The sample.
        original: (H, W, 3) uint8.
        adversarial: (H, W, 3) uint8.
        class_name: The name of a class index.
    """
    perturbation, factor = magnify(original, adversarial, epsilon=view.epsilon, norm=view.norm)
    clean = [(target.target, target.clean) for target in view.targets]
    attacked = [(target.target, target.adversarial) for target in view.targets]
    panels: tuple[tuple[np.ndarray, str, list[tuple[str, Prediction]]], ...] = (
        (original, f"original: {short(class_name(view.label))}", clean),
        (perturbation, f"perturbation × {factor:.0f}, around grey", []),
        (adversarial, "adversarial, as stored", attacked),
    )
    height = 4.0 + 0.15 * max(1, len(view.targets))
    figure = Figure(figsize=(11, height), layout="constrained", facecolor="white")
    for axis, (image, title, predictions) in zip(figure.subplots(1, 3), panels, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
        lines = [f"{target}: {prediction.text(class_name)}" for target, prediction in predictions]
        axis.set_xlabel(drawing.escape_dollars("\n".join(lines)), fontsize=9, family="DejaVu Sans", loc="left")
    heading = f"{view.attack} from {view.source}, ε = {budget(view.epsilon, view.norm)}"
    figure.suptitle(drawing.escape_dollars(heading), fontsize=12)
    return figure


def magnify(original: np.ndarray, adversarial: np.ndarray, *, epsilon: float, norm: str) -> tuple[np.ndarray, float]:
    """A magnified perturbation around grey, (H, W, 3) float in [0, 1], and the factor by which it is magnified."""
    perturbation = (adversarial.astype(np.float64) - original.astype(np.float64)) / 255
    largest = epsilon if norm == "linf" else float(np.abs(perturbation).max()) or 1.0
    return np.clip(0.5 + perturbation / (2 * largest), 0, 1), 1 / (2 * largest)
