"""Names → a composed attack, and its provenance."""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from pipeline.attack.ball import BallNorm
from pipeline.attack.gradient_transforms import (
    GradientNormPenalty,
    PenalisedNeighbours,
    ReversePerturbation,
    Smoothing,
    Transform,
    VarianceTuning,
    survives_bfloat16,
)
from pipeline.attack.input_transforms import Admix, DiverseInput, Scale, View
from pipeline.attack.loop import Iterative, Noise, Wanted
from pipeline.attack.losses import Loss
from pipeline.attack.precision import Precision

Attack = Iterative | Noise

# Raised whenever the same settings would give other pixels: results of two versions never mix.
VERSION = 5

# Base → what it sets of `Iterative`.
BASES: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "i": {},
    "pgd": {"random_start": True},
    "mi": {"decay": 1.0},
    "ni": {"decay": 1.0, "nesterov": True},
}
# Name → the view or transform that it stands for, with published defaults.
VIEWS: dict[str, type[View]] = {"di": DiverseInput, "si": Scale, "admix": Admix}
TRANSFORMS: dict[str, type[Transform]] = {
    "gnp": GradientNormPenalty,
    "ti": Smoothing,
    "vt": VarianceTuning,
    "pgn": PenalisedNeighbours,
    "rap": ReversePerturbation,
}


_MOST_STEPS = 1_000_000


def build(
    combination: str,
    *,
    epsilon: Fraction,
    steps: int | None = None,
    step_size: Fraction | None = None,
    decay: float | None = None,
    norm: BallNorm = "linf",
    loss: Loss | None = None,
    target_class: Wanted | None = None,
    parts: Mapping[str, View | Transform] | None = None,
    seed: int = 0,
    precision: Precision | Literal["auto"] | None = None,
    name: str = "",
) -> Attack:
    """The attack that a combination names, with published defaults where nothing else is said.

    Args:
        combination: `noise`; or one base (`fgsm`, `i`, `pgd`, `mi`, `ni`), views (`di`, `si`, `admix`) and transforms
            (`gnp`, `ti`, `vt`, `pgn`, `rap`), joined by `+`: `gnp+mi+di+ti`. Views are applied to the image in this
            order; of transforms the first is innermost.
        epsilon: The budget on [0, 1].
        steps: T; 10 by default, and always 1 for `fgsm`.
        step_size: α; ε/T by default.
        decay: μ; by default the base's, 1 for `mi` and `ni` and 0 for the others.
        norm: Of the ball.
        loss: What is raised; cross-entropy by default.
        target_class: Which class is wanted; by default none.
        parts: Views and transforms that the combination names, with settings of their own.
        seed: Seed of every draw.
        precision: In which the source is differentiated, float32 by default; `auto` is bfloat16 where every part allows
            it, else float32.
        name: What results call the attack; by default the combination.

    Raises:
        ValueError: The combination, or a number, cannot be.
    """
    require_budget(epsilon, norm)
    if len(name or combination) > 100:
        raise ValueError(f"name = {(name or combination)[:30]!r}…: longer than 100 characters; set a shorter name")
    if not (name or combination).isprintable():
        raise ValueError(f"name = {name or combination!r}: holds a character that no terminal shows")
    parts, names = parts or {}, combination.split("+")
    base = "" if names == ["noise"] else _base(combination, names)
    for part in parts:
        if names == ["noise"]:
            raise ValueError(f"attack = 'noise': takes no {part}")
        if part not in names:
            raise ValueError(
                f'{part} is set, but attack = {combination!r} does not name it; write "{part}+{combination}"'
            )
    if not base:
        given = {
            "steps": steps,
            "step_size": step_size,
            "decay": decay,
            "loss": loss,
            "target_class": target_class,
            "precision": precision,
        }
        for field, value in given.items():
            if value is not None:
                raise ValueError(f"attack = 'noise': takes no {field}")
        return Noise(name or combination, epsilon, norm, seed)
    steps = _steps(base, steps)
    if step_size is not None and not 0 < step_size <= _most(norm):
        raise ValueError(f"step_size = {step_size}: must lie in (0, {_most(norm)}], for pixels in [0, 1]")
    if decay is not None and not 0 <= decay < math.inf:
        raise ValueError(f"decay = {decay}: must be a number from 0")
    if isinstance(target_class, int) and target_class < 0:
        raise ValueError(f"target_class = {target_class}: must be a class index from 0")
    if norm == "l2" and (square := [name for name in names if name in ("vt", "pgn")]):
        raise ValueError(f"norm = 'l2': {square[0]} draws neighbours from a cube around the image, which is L∞'s ball")
    made: dict[str, Any] = {part: parts.get(part) or {**VIEWS, **TRANSFORMS}[part]() for part in names if part != base}
    _require_one_size(made)
    settings = {**BASES[base], **({} if decay is None else {"decay": decay})}
    views, transforms = (tuple(made[part] for part in names if part in kind) for kind in (VIEWS, TRANSFORMS))
    step_size = epsilon / steps if step_size is None else step_size
    if precision == "auto":
        survives = all(survives_bfloat16(transform, float(step_size)) for transform in transforms)
        precision = "bfloat16" if survives else "float32"
    return Iterative(
        name=name or combination,
        epsilon=epsilon,
        steps=steps,
        step_size=step_size,
        norm=norm,
        loss=loss or "cross-entropy",
        target_class=target_class,
        views=views,
        transforms=transforms,
        seed=seed,
        precision=precision or "float32",
        **settings,
    )


def require_budget(epsilon: Fraction, norm: BallNorm) -> None:
    """Refuses a budget that no image could use, or that no stored image could show.

    Raises:
        ValueError: It is one.
    """
    if not 0 < epsilon <= _most(norm):
        raise ValueError(
            f'epsilon = {epsilon}: must lie in (0, {_most(norm)}], for pixels in [0, 1]; for example "16/255"'
        )
    if epsilon < Fraction(1, 255):
        raise ValueError(f"epsilon = {epsilon}: below 1/255 no stored 8-bit image can change")


def provenance(attack: Attack) -> dict[str, Any]:
    """Everything that determines an attack's pixels, as JSON values: what is stored, fingerprinted and reported."""
    described: dict[str, Any] = _plain(attack)
    return {"version": VERSION, **described}


def _base(combination: str, names: list[str]) -> str:
    bases = [name for name in names if name in BASES]
    unknown = [name for name in names if name not in BASES and name not in VIEWS and name not in TRANSFORMS]
    if unknown or len(bases) != 1 or len(set(names)) != len(names):
        raise ValueError(
            f"attack = {combination!r}: expected noise, or one of {', '.join(BASES)} with any of "
            f'{", ".join([*VIEWS, *TRANSFORMS])}, each once, joined by +; for example "gnp+mi+di+ti"'
        )
    return bases[0]


def _require_one_size(made: Mapping[str, View | Transform]) -> None:
    order = list(made)
    larger = [name for name, part in made.items() if isinstance(part, DiverseInput) and part.enlargement > 1]
    if larger and "admix" in order and order.index("admix") > order.index(larger[0]):
        raise ValueError(
            "admix after di with variant = 'no-resize-back': its images have another size; name admix first"
        )


def _steps(base: str, steps: int | None) -> int:
    if base == "fgsm":
        if steps not in (None, 1):
            raise ValueError(f"steps = {steps}: fgsm takes one; i takes more")
        return 1
    if steps is not None and not 1 <= steps <= _MOST_STEPS:
        raise ValueError(f"steps = {steps}: must be from 1 to {_MOST_STEPS:,}")
    return 10 if steps is None else steps


def _most(norm: BallNorm) -> int:
    # Pixels lie in [0, 1]: no two differ by more than 1, no two images of 577 x 577 by more than 1,000 in L2.
    return 1 if norm == "linf" else 1000


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Fraction) else value
