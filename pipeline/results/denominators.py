"""The denominators of a success rate: which images count."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from pipeline.data.sample import Part
from pipeline.ledger import Unit
from pipeline.results.predictions import StoredPredictions

Denominator = Literal["all", "target", "joint"]
# The images that each denominator counts, in words for reports.
DENOMINATOR_LABELS: dict[Denominator, str] = {
    "all": "all images",
    "target": "images that the target classifies correctly when clean",
    "joint": "images that every target classifies correctly when clean",
}


def denominator_masks(
    adversarial: StoredPredictions, clean: StoredPredictions, all_correct: np.ndarray
) -> dict[Denominator, np.ndarray]:
    """Which images each denominator counts, (rows,) bool.

    Args:
        adversarial: A target's predictions on adversarial images.
        clean: The same target's predictions on the same images, clean.
        all_correct: Where every target is correct when clean, (rows,) bool.

    Raises:
        IntegrityError: The two files hold different images.
    """
    adversarial.require_same_images(clean)
    return {
        "all": adversarial.attacked,
        "target": adversarial.attacked & clean.correct,
        "joint": adversarial.attacked & all_correct,
    }


def joint_targets(clean: Iterable[Unit]) -> dict[str, list[str]]:
    """For each dataset, the targets with clean predictions on every part that any target has."""
    scored: dict[str, dict[str, set[Part]]] = defaultdict(lambda: defaultdict(set))
    for unit in clean:
        scored[unit.dataset][unit.target].add(unit.part)
    return {
        dataset: sorted(target for target, parts in targets.items() if parts == set().union(*targets.values()))
        for dataset, targets in scored.items()
    }


def all_correct(clean: Mapping[str, StoredPredictions], targets: Sequence[str]) -> np.ndarray:
    """Where all of some targets are correct when clean, (rows,) bool; nowhere if no targets are given.

    If no target has predictions on every part, the joint denominator is then empty, rather than a different one in each
    part.
    """
    if targets:
        return np.asarray(np.logical_and.reduce([clean[target].correct for target in targets]))
    return np.zeros(len(next(iter(clean.values())).correct), bool)
