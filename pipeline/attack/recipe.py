"""Names → a composed attack, and its provenance."""

import dataclasses
import math
from fractions import Fraction
from typing import Any

from pipeline.attack.iterate import Iterative, Noise
from pipeline.attack.transforms import GradientNormPenalty, Transform

Attack = Iterative | Noise

# Raised whenever the same settings would give other pixels: results of two versions never mix.
VERSION = 1

_DECAYS = {"i": 0.0, "mi": 1.0}
_TRANSFORMS: dict[str, type[Transform]] = {"gnp": GradientNormPenalty}


def build(
    combination: str,
    *,
    epsilon: Fraction,
    steps: int,
    step_size: Fraction | None = None,
    decay: float | None = None,
    transforms: tuple[Transform, ...] | None = None,
    seed: int = 0,
    name: str = "",
) -> Attack:
    """The attack that a combination names, with published defaults where nothing else is said.

    Args:
        combination: `noise`, or a base (`i` for I-FGSM, `mi` for MI-FGSM) and transforms, joined by `+`: `gnp+mi`.
        epsilon: The L∞ budget on [0, 1].
        steps: T.
        step_size: α; ε/T by default.
        decay: μ; by default the base's, 0 for `i` and 1 for `mi`.
        transforms: Spelled out, innermost first, they replace those that the combination names by their defaults.
        seed: Seed of every draw.
        name: What results call the attack; by default the combination.

    Raises:
        ValueError: The combination, or a number, cannot be.
    """
    if not 0 < epsilon <= 1:
        raise ValueError(f'epsilon = {epsilon}: must lie in (0, 1], for pixels in [0, 1]; for example "16/255"')
    if epsilon < Fraction(1, 255):
        raise ValueError(f"epsilon = {epsilon}: below 1/255 no stored 8-bit image can change")
    parts = combination.split("+")
    if len(name or combination) > 100:
        raise ValueError(f"name = {(name or combination)[:30]!r}…: longer than 100 characters")
    if parts == ["noise"]:
        if step_size is not None or decay is not None or transforms is not None:
            raise ValueError("attack = 'noise': takes an epsilon, and no step_size, decay or transform")
        return Noise(name or combination, epsilon, seed)
    bases = [part for part in parts if part in _DECAYS]
    unknown = [part for part in parts if part not in _DECAYS and part not in _TRANSFORMS]
    if unknown or len(bases) != 1 or len(set(parts)) != len(parts):
        raise ValueError(
            f"attack = {combination!r}: expected noise, or one of {', '.join(_DECAYS)} with any of "
            f'{", ".join(_TRANSFORMS)}, joined by +; for example "gnp+mi"'
        )
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be at least 1")
    if step_size is not None and not 0 < step_size <= 1:
        raise ValueError(f"step_size = {step_size}: must lie in (0, 1], for pixels in [0, 1]")
    if decay is not None and not 0 <= decay < math.inf:
        raise ValueError(f"decay = {decay}: must be a number from 0")
    if transforms is None:
        transforms = tuple(_TRANSFORMS[part]() for part in parts if part in _TRANSFORMS)
    return Iterative(
        name=name or combination,
        epsilon=epsilon,
        steps=steps,
        step_size=epsilon / steps if step_size is None else step_size,
        decay=_DECAYS[bases[0]] if decay is None else decay,
        transforms=transforms,
        seed=seed,
    )


def provenance(attack: Attack) -> dict[str, Any]:
    """Everything that determines an attack's pixels, as JSON values: what is stored, fingerprinted and reported."""
    described: dict[str, Any] = _plain(attack)
    return {"version": VERSION, **described}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Fraction) else value
