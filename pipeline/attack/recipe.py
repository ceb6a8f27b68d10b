"""Builds an attack from names such as "gnp+mi+di+ti", and records its settings (provenance)."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from pipeline.attack.ball import BallNorm
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.gradient_transforms import (
    GradientTransform,
    PenalisedNeighbours,
    ReversePerturbation,
    Smoothing,
    VarianceTuning,
    survives_bfloat16,
)
from pipeline.attack.input_transforms import Admix, DiverseInput, InputTransform, Scale
from pipeline.attack.limits import require_count, require_distance, require_not_negative
from pipeline.attack.loop import Iterative, TargetClass
from pipeline.attack.losses import Loss
from pipeline.attack.noise import Noise
from pipeline.attack.precision import Precision

Attack = Iterative | Noise

# Raised whenever the same settings would give other pixels: results of two versions never mix.
VERSION = 6

# Base → its settings of `Iterative`.
BASES: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "i": {},
    "pgd": {"random_start": True},
    "mi": {"decay": 1.0},
    "ni": {"decay": 1.0, "nesterov": True},
}
# Name → transform, whose defaults are the published ones.
INPUT_TRANSFORMS: dict[str, type[InputTransform]] = {"di": DiverseInput, "si": Scale, "admix": Admix}
GRADIENT_TRANSFORMS: dict[str, type[GradientTransform]] = {
    "gnp": GradientNormPenalty,
    "ti": Smoothing,
    "vt": VarianceTuning,
    "pgn": PenalisedNeighbours,
    "rap": ReversePerturbation,
}

_MOST_STEPS = 1_000_000
_LONGEST_NAME = 100


def build(
    combination: str,
    *,
    epsilon: Fraction,
    steps: int | None = None,
    step_size: Fraction | None = None,
    decay: float | None = None,
    norm: BallNorm = "linf",
    loss: Loss | None = None,
    target_class: TargetClass | None = None,
    parts: Mapping[str, InputTransform | GradientTransform] | None = None,
    seed: int = 0,
    precision: Precision | Literal["auto"] | None = None,
    name: str = "",
) -> Attack:
    """Builds the attack that a combination names; settings that are not given have published defaults.

    Args:
        combination: `noise`; or one base (`fgsm`, `i`, `pgd`, `mi`, `ni`), input transforms (`di`, `si`, `admix`) and
            gradient transforms (`gnp`, `ti`, `vt`, `pgn`, `rap`), joined by `+`: `gnp+mi+di+ti`. Input transforms are
            applied to the image in this order; the first gradient transform is the innermost.
        epsilon: Budget on [0, 1].
        steps: T; 10 by default, and always 1 for `fgsm`.
        step_size: α; ε/T by default.
        decay: μ; by default the base's, 1 for `mi` and `ni` and 0 for the others.
        norm: Norm of the ball.
        loss: Loss at the label or target class; cross-entropy by default.
        target_class: Class of a targeted attack; by default the attack is untargeted.
        parts: Transforms that the combination names, with settings other than the defaults.
        seed: Seed of all draws.
        precision: Precision of the source's forward and backward passes, float32 by default; `auto` is bfloat16 if
            every transform allows it, otherwise float32.
        name: Name in results; by default the combination.

    Raises:
        ValueError: The combination is unknown, or a setting is out of range.
    """
    require_budget(epsilon, norm)
    name = name or combination
    _check_name(name)
    parts = parts or {}
    names = combination.split("+")
    if names == ["noise"]:
        settings: dict[str, object] = {"steps": steps, "step_size": step_size, "decay": decay}
        settings |= {"loss": loss, "target_class": target_class, "precision": precision}
        _check_noise([*parts, *(setting for setting, value in settings.items() if value is not None)])
        return Noise(name, epsilon, norm, seed)
    base = _base_name(combination, names)
    _check_named(parts, combination, names)
    steps = _steps(base, steps)
    _check_numbers(step_size, decay, target_class, norm)
    _check_neighbours(names, norm)
    transforms: dict[str, Any] = {name: parts.get(name) or _transform_type(name)() for name in names if name != base}
    _check_image_sizes(transforms)
    gradient_transforms = tuple(transforms[name] for name in names if name in GRADIENT_TRANSFORMS)
    step_size = epsilon / steps if step_size is None else step_size
    return Iterative(
        name=name,
        epsilon=epsilon,
        steps=steps,
        step_size=step_size,
        norm=norm,
        loss=loss or "cross-entropy",
        target_class=target_class,
        input_transforms=tuple(transforms[name] for name in names if name in INPUT_TRANSFORMS),
        gradient_transforms=gradient_transforms,
        seed=seed,
        precision=_precision(precision, gradient_transforms, step_size),
        **{**BASES[base], **({} if decay is None else {"decay": decay})},
    )


def require_budget(epsilon: Fraction, norm: BallNorm) -> None:
    """Refuses a budget that is larger than any distance of images, or too small to change a stored image.

    Raises:
        ValueError: It is one of these.
    """
    require_distance("epsilon", epsilon, norm=norm, example='; for example "16/255"')
    if epsilon < Fraction(1, 255):
        raise ValueError(f"epsilon = {epsilon}: below 1/255 no stored 8-bit image can change")


def provenance(attack: Attack) -> dict[str, Any]:
    """Everything that determines an attack's pixels, as JSON values: what is stored, fingerprinted and reported."""
    recorded: dict[str, Any] = _recorded(attack)
    return {"version": VERSION, **recorded}


def _recorded(value: Any) -> Any:
    """A value as JSON; a field is recorded under its own name, or under the one that its metadata state."""
    if dataclasses.is_dataclass(value):
        settings = {
            field.metadata.get("recorded_as", field.name): _recorded(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
        return {"kind": type(value).__name__, **settings}
    if isinstance(value, tuple):
        return [_recorded(item) for item in value]
    return str(value) if isinstance(value, Fraction) else value


def _transform_type(name: str) -> type[InputTransform] | type[GradientTransform]:
    return INPUT_TRANSFORMS[name] if name in INPUT_TRANSFORMS else GRADIENT_TRANSFORMS[name]


def _base_name(combination: str, names: list[str]) -> str:
    """The one base among the names of a combination."""
    transforms = [*INPUT_TRANSFORMS, *GRADIENT_TRANSFORMS]
    bases = [name for name in names if name in BASES]
    unknown = [name for name in names if name not in BASES and name not in transforms]
    if unknown or len(bases) != 1 or len(set(names)) != len(names):
        raise ValueError(
            f"attack = {combination!r}: expected noise, or one of {', '.join(BASES)} with any of "
            f'{", ".join(transforms)}, each once, joined by +; for example "gnp+mi+di+ti"'
        )
    return bases[0]


def _steps(base: str, steps: int | None) -> int:
    if base == "fgsm":
        if steps not in (None, 1):
            raise ValueError(f"steps = {steps}: fgsm takes one; i takes more")
        return 1
    steps = 10 if steps is None else steps
    require_count("steps", steps, most=_MOST_STEPS)
    return steps


def _precision(
    precision: Precision | Literal["auto"] | None, transforms: tuple[GradientTransform, ...], step_size: Fraction
) -> Precision:
    if precision == "auto":
        survives = all(survives_bfloat16(transform, float(step_size)) for transform in transforms)
        return "bfloat16" if survives else "float32"
    return precision or "float32"


def _check_name(name: str) -> None:
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"name = {name[:30]!r}…: longer than {_LONGEST_NAME} characters; set a shorter name")
    if not name.isprintable():
        raise ValueError(f"name = {name!r}: holds a character that no terminal prints")


def _check_noise(settings: list[str]) -> None:
    if settings:
        raise ValueError(f"attack = 'noise': takes no {settings[0]}")


def _check_named(parts: Mapping[str, object], combination: str, names: list[str]) -> None:
    for part in parts:
        if part not in names:
            raise ValueError(
                f'{part} is set, but attack = {combination!r} does not name it; write "{part}+{combination}"'
            )


def _check_numbers(
    step_size: Fraction | None, decay: float | None, target_class: TargetClass | None, norm: BallNorm
) -> None:
    if step_size is not None:
        require_distance("step_size", step_size, norm=norm)
    if decay is not None:
        require_not_negative("decay", decay)
    if isinstance(target_class, int) and target_class < 0:
        raise ValueError(f"target_class = {target_class}: must be a class index from 0")


def _check_neighbours(names: list[str], norm: BallNorm) -> None:
    samplers = [name for name in names if name in ("vt", "pgn")]
    if norm == "l2" and samplers:
        raise ValueError(
            f"norm = 'l2': {samplers[0]} draws neighbours from a cube around the image, which is L∞'s ball"
        )


def _check_image_sizes(transforms: Mapping[str, InputTransform | GradientTransform]) -> None:
    order = list(transforms)
    larger = [name for name, part in transforms.items() if isinstance(part, DiverseInput) and part.enlargement > 1]
    if larger and "admix" in order and order.index("admix") > order.index(larger[0]):
        raise ValueError(
            "admix after di with variant = 'no-resize-back': its images have another size; name admix first"
        )
