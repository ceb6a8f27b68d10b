"""Sample gallery: samples of an attack chosen by rule: at random, its strongest, and its failures."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.analysis import picture, sample_view
from pipeline.analysis.report import PooledSuccess
from pipeline.analysis.sample_view import SampleView
from pipeline.ledger import Ledger

SAMPLES_PER_RULE = 3
RULES = {
    "random": "drawn with seed 0",
    "strongest": "most targets fooled, then lowest probability of the true class",
    "failures": "fewest targets fooled, then highest probability of the true class",
}


@dataclass(frozen=True)
class GallerySample:
    """One sample of the gallery.

    Attributes:
        view: The sample.
        original: The original, a PNG as a `data:` URL.
        perturbation: The magnified perturbation around grey, a PNG as a `data:` URL.
        adversarial: The adversarial image as stored, a PNG as a `data:` URL.
        factor: How many times the perturbation is magnified.
    """

    view: SampleView
    original: str
    perturbation: str
    adversarial: str
    factor: float


def gallery(ledger: Ledger, row: PooledSuccess) -> dict[str, list[GallerySample]]:
    """Rule → samples of an attack; no sample appears under two rules."""
    views = sample_view.sample_views(ledger, row.dataset, row.source_id, row.attack_id)
    return {rule: [_gallery_sample(ledger, view) for view in chosen] for rule, chosen in choose_samples(views).items()}


def choose_samples(views: Sequence[SampleView], *, seed: int = 0) -> dict[str, list[SampleView]]:
    """Rule → at most `SAMPLES_PER_RULE` samples."""
    remaining = list(views)

    def take(ordered: Iterable[SampleView]) -> list[SampleView]:
        chosen = list(ordered)[:SAMPLES_PER_RULE]
        for view in chosen:
            remaining.remove(view)
        return chosen

    order = np.random.default_rng(seed).permutation(len(remaining))
    samples = {"random": take(remaining[index] for index in order)}
    successful = [view for view in remaining if view.targets_fooled]
    samples["strongest"] = take(sorted(successful, key=lambda view: (-view.targets_fooled, view.mean_probability)))
    failing = [view for view in remaining if any(target.clean.correct and not target.fooled for target in view.targets)]
    samples["failures"] = take(sorted(failing, key=lambda view: (view.targets_fooled, -view.mean_probability)))
    return samples


def _gallery_sample(ledger: Ledger, view: SampleView) -> GallerySample:
    original, adversarial = sample_view.read_images(ledger, view)
    perturbation, factor = picture.magnify(original, adversarial, epsilon=view.epsilon, norm=view.norm)
    pixels = (255 * perturbation).round().astype(np.uint8)
    return GallerySample(view, _data_url(original), _data_url(pixels), _data_url(adversarial), factor)


def _data_url(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
