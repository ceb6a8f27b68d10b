"""Types of a recipe's fields: what a TOML file may write, converted to the components' own dataclasses."""

from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag

from pipeline.attack.ball import BallNorm
from pipeline.attack.recipe import require_budget
from pipeline.errors import RecipeError
from pipeline.models.spec import EnsembleSpec, ModelSpec, TargetSpec, require_model_exists
from pipeline.plan.data_spec import DataSpec
from pipeline.plan.numbers import parse_fractions, parse_number
from pipeline.storage import absolute_url

Spec = TypeVar("Spec", bound=ModelSpec)


def parse_epsilon(text: str, norm: BallNorm) -> Fraction:
    """A budget on [0, 1] as a user writes it: 16/255, 0.05.

    Raises:
        RecipeError: It is not a number, or lies outside the norm's range.
    """
    try:
        epsilon = parse_number(text)
    except ValueError as error:
        raise RecipeError(f"epsilon: {error}") from error
    try:
        require_budget(epsilon, norm)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return epsilon


def as_list(value: Any) -> Any:
    """Accepts a single value as a list of one."""
    return value if isinstance(value, (list, tuple)) else (value,)


def require_target_class(value: Any) -> Any:
    """Refuses a text that is not a rule for target classes."""
    if value is not None and not isinstance(value, int) and value not in ("shard", "random", "least-likely"):
        raise ValueError(f'{value!r} is not a target class; write "shard", "random", "least-likely" or a class index')
    return value


def _accept_one_pattern(value: Any) -> Any:
    """Accepts a single text as the `shards` of `[data]`."""
    if isinstance(value, dict) and isinstance(value.get("shards"), str):
        return {**value, "shards": [value["shards"]]}
    return value


def _accept_tag(value: Any) -> Any:
    """Accepts a model's tag in place of its table."""
    return {"model": value} if isinstance(value, str) else value


def _accept_tags(value: Any) -> Any:
    """Accepts tags in place of tables within an ensemble."""
    if isinstance(value, dict) and isinstance(value.get("ensemble"), list):
        return {**value, "ensemble": [_accept_tag(member) for member in value["ensemble"]]}
    return value


def _checked(spec: Spec) -> Spec:
    """The model with absolute checkpoint paths, after a check that it exists."""
    require_model_exists(spec)
    changes: dict[str, Any] = {} if spec.checkpoint is None else {"checkpoint": absolute_url(spec.checkpoint)}
    if isinstance(spec, TargetSpec):
        for name in ("nrp", "hgd"):
            purifier = getattr(spec, name)
            if purifier is not None:
                changes[name] = replace(purifier, checkpoint=absolute_url(purifier.checkpoint))
    return replace(spec, **changes)


def _checked_members(spec: EnsembleSpec) -> EnsembleSpec:
    return replace(spec, ensemble=tuple(map(_checked, spec.ensemble)))


Number = Annotated[Fraction, BeforeValidator(parse_number)]
Data = Annotated[DataSpec, BeforeValidator(_accept_one_pattern)]
Model = Annotated[ModelSpec, BeforeValidator(_accept_tag), AfterValidator(_checked)]
Target = Annotated[TargetSpec, BeforeValidator(_accept_tag), AfterValidator(_checked)]
Ensemble = Annotated[EnsembleSpec, BeforeValidator(_accept_tags), AfterValidator(_checked_members)]

# Pydantic's names for the two kinds of source in the location of an error, and the title of each in the JSON schema.
SOURCE_TITLES = {"one model": ModelSpec.__name__, "several models": EnsembleSpec.__name__}
_ONE, _SEVERAL = SOURCE_TITLES
Source = Annotated[
    Annotated[Model, Tag(_ONE)] | Annotated[Ensemble, Tag(_SEVERAL)],
    Discriminator(lambda value: _SEVERAL if isinstance(value, dict) and "ensemble" in value else _ONE),
]

# Before a table of settings whose numbers may be fractions.
FRACTIONS = BeforeValidator(parse_fractions)
