"""Accuracies no better than chance: the sign of labels that are not the models' class numbers."""

from collections.abc import Mapping

from pipeline.results.intervals import Rate

# Of fewer images, an accuracy says nothing.
_LEAST_IMAGES = 20


def chance_warning(accuracy: Mapping[str, Rate], classes: int) -> str | None:
    """A sentence with the likely causes, where no target classifies clean images better than by chance; else None.

    Args:
        accuracy: Target → its accuracy on clean images.
        classes: Number of classes: a guess is right with probability 1/classes.
    """
    if not accuracy or not all(_is_chance(rate, classes) for rate in accuracy.values()):
        return None
    counts = ", ".join(f"{target} {rate.count} of {rate.n}" for target, rate in sorted(accuracy.items()))
    return (
        f"no target classifies clean images better than by chance ({counts} correct): the labels may not be the "
        "models' class numbers, or count from 1 instead of 0 (see classes.json and docs/packing.md); or mean, std "
        "or input size are another model's"
    )


def _is_chance(rate: Rate, classes: int) -> bool:
    """Whether the lower end of the 95% interval is at or below the probability of a right guess."""
    return rate.n >= _LEAST_IMAGES and rate.interval is not None and rate.interval[0] <= 1 / classes
