"""Short attacks in which every part, form, norm, loss and choice of target classes occurs."""

from fractions import Fraction
from typing import Any, get_args

from pipeline.attack.ensemble import Fuse
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty, PenaltyForm
from pipeline.attack.gradient_transforms import (
    GradientTransform,
    PenalisedNeighbours,
    ReversePerturbation,
    VarianceTuning,
)
from pipeline.attack.input_transforms import Admix, InputTransform, Scale
from pipeline.attack.losses import Loss
from pipeline.attack.recipe import BASES, GRADIENT_TRANSFORMS, INPUT_TRANSFORMS, Attack, build

PARTS = (*INPUT_TRANSFORMS, *GRADIENT_TRANSFORMS)
# Parts that average over many gradients, with few of them.
CHEAP_PARTS: dict[str, InputTransform | GradientTransform] = {
    "si": Scale(copies=2),
    "admix": Admix(samples=2, scales=2),
    "vt": VarianceTuning(samples=2),
    "pgn": PenalisedNeighbours(samples=2),
    "rap": ReversePerturbation(steps=2, late_start=0),
}
_EPSILON = Fraction(8, 255)


def cheap_parts(combination: str) -> dict[str, InputTransform | GradientTransform]:
    """The parts of a combination that have cheaper settings than the published ones."""
    return {name: part for name, part in CHEAP_PARTS.items() if name in combination.split("+")}


def cheap_attack(combination: str, **settings: Any) -> Attack:
    """An attack of two steps at 8/255, whose parts need few gradients."""
    defaults: dict[str, Any] = {"epsilon": _EPSILON, "parts": cheap_parts(combination)}
    if not {"noise", "fgsm"} & set(combination.split("+")):
        defaults["steps"] = 2
    return build(combination, **{**defaults, **settings})


def variants() -> dict[str, tuple[Attack, Fuse | None]]:
    """The attacks by name, each with how the source's two networks are fused; None: the source is one network."""
    found: dict[str, tuple[Attack, Fuse | None]] = {}
    for name in ("noise", *BASES, *(f"{part}+mi" for part in PARTS), "di+ti+si+admix+gnp+vt+ni"):
        found[name] = cheap_attack(name), None
    for form in get_args(PenaltyForm):
        for norm in ("l2", "mean-abs"):
            penalty = GradientNormPenalty(form=form, norm=norm)
            found[f"gnp+mi, {form}, {norm}"] = cheap_attack("gnp+mi", parts={"gnp": penalty}), None
    for name in ("noise", "pgd", "gnp+mi"):
        found[f"{name}, in an L2 ball"] = cheap_attack(name, norm="l2", epsilon=Fraction(1, 2)), None
    for loss in get_args(Loss):
        found[f"mi, {loss}"] = cheap_attack("mi", loss=loss), None
    for target_class in ("random", "least-likely", 3):
        found[f"mi, towards {target_class}"] = cheap_attack("mi", target_class=target_class), None
    for fuse in get_args(Fuse):
        found[f"mi, {fuse} fused"] = cheap_attack("mi"), fuse
    return found
