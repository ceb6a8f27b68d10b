"""Samples to look at, chosen by rule: at random, where an attack is strongest, and where it fails."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.analysis import picture
from pipeline.analysis.picture import Said
from pipeline.analysis.report import Overall
from pipeline.ledger import Ledger

EACH = 3
RULES = {
    "random": "drawn by seed 0",
    "strongest": "most targets fooled, then the least probability of the true class",
    "failures": "fewest targets fooled of those that were right, then the greatest probability of the true class",
}


@dataclass(frozen=True)
class Shown:
    """One sample of the gallery.

    Attributes:
        said: What is said of it.
        original: A PNG as a `data:` address.
        perturbation: Likewise, around grey.
        adversarial: Likewise, as stored.
        times: How many times larger the perturbation is made.
    """

    said: Said
    original: str
    perturbation: str
    adversarial: str
    times: float


def gallery(ledger: Ledger, row: Overall) -> dict[str, list[Shown]]:
    """Rule → samples of an attack; a sample stands under one rule alone."""
    return {rule: _shown(ledger, said) for rule, said in chosen(picture.some(ledger, *_names(row))).items()}


def chosen(told: Sequence[Said], *, seed: int = 0) -> dict[str, list[Said]]:
    """Rule → samples, `EACH` of each as far as there are so many."""
    left = list(told)

    def take(ordered: Iterable[Said]) -> list[Said]:
        taken = list(ordered)[:EACH]
        for said in taken:
            left.remove(said)
        return taken

    order = np.random.default_rng(seed).permutation(len(left))
    found = {"random": take(left[index] for index in order)}
    found["strongest"] = take(
        sorted((each for each in left if each.fooled), key=lambda said: (-said.fooled, said.probability))
    )
    failing = (each for each in left if any(answer.before.right and not answer.fooled for answer in each.answers))
    found["failures"] = take(sorted(failing, key=lambda said: (said.fooled, -said.probability)))
    return found


def _names(row: Overall) -> tuple[str, str, str]:
    return row.dataset, row.source_id, row.attack_id


def _shown(ledger: Ledger, told: Sequence[Said]) -> list[Shown]:
    found = []
    for said in told:
        original, adversarial = picture.images(ledger, said)
        perturbation, times = picture.magnified(original, adversarial, epsilon=said.epsilon, norm=said.norm)
        enlarged = (255 * perturbation).round().astype(np.uint8)
        found.append(Shown(said, _address(original), _address(enlarged), _address(adversarial), times))
    return found


def _address(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
