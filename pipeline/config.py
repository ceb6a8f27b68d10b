"""A TOML recipe → validated, frozen models → the components' own terms.

Unknown keys are refused, and every refusal names the field, the value and what would be accepted, before any work
starts. Data, models, preparation, transforms and pools are the components' own dataclasses: what each accepts is said
where it lives.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline import models
from pipeline.attack.recipe import Attack, build
from pipeline.attack.transforms import GradientNormPenalty
from pipeline.errors import RecipeError
from pipeline.models import ModelSpec
from pipeline.plan import DataSpec, Job
from pipeline.pools import Pools
from pipeline.storage import absolute

# Of bounded length: "1e999999999" is a number that takes all of the memory and of the day.
_NUMBER = re.compile(r"[-+]?[0-9]{0,30}(/[0-9]{1,30}|\.[0-9]{0,30})?([eE][-+]?[0-9]{1,3})?")


def _tag(value: Any) -> Any:
    """A model may be its tag alone."""
    return {"model": value} if isinstance(value, str) else value


def _one_pattern(value: Any) -> Any:
    """Shards may be one pattern alone."""
    if isinstance(value, dict) and isinstance(value.get("shards"), str):
        return {**value, "shards": [value["shards"]]}
    return value


def _known(spec: ModelSpec) -> ModelSpec:
    models.check(spec)
    return spec if spec.checkpoint is None else replace(spec, checkpoint=absolute(spec.checkpoint))


def _number(value: Any) -> Fraction:
    """A number as its digits say, not as the nearest binary fraction: 0.1 is 1/10."""
    try:
        if _NUMBER.fullmatch(str(value)):
            return Fraction(str(value))
    except ZeroDivisionError:
        pass
    raise ValueError(f'{value!r} is no number; write a number, or a fraction such as "16/255"')


# What the deepest key of a recipe is: attacks.1.gnp.r, with room to name a wrong one below.
_DEEPEST = 10

Number = Annotated[Fraction, BeforeValidator(_number)]
Data = Annotated[DataSpec, BeforeValidator(_one_pattern)]
Model = Annotated[ModelSpec, BeforeValidator(_tag), AfterValidator(_known)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Budget(_Table):
    """`[budget]`: what every attack is given unless it says otherwise.

    Attributes:
        epsilon: L∞ budget on [0, 1], as a number or a fraction such as "16/255".
        steps: Iterations T.
        seed: Seed of every draw.
    """

    epsilon: Number = Fraction(16, 255)
    steps: int = 10
    seed: int = 0


class AttackEntry(_Table):
    """`[[attacks]]`: a combination by name, such as "gnp+mi", or spelled out.

    Attributes:
        attack: `noise`, or a base and transforms joined by +; see `pipeline.attack.recipe.build`.
        name: What results call it; by default `attack`.
        epsilon: By default the budget's.
        steps: By default the budget's.
        step_size: By default epsilon/steps.
        decay: By default the base's.
        gnp: Settings of the gradient norm penalty that `attack` names; by default the paper's.
    """

    attack: str
    name: str = ""
    epsilon: Number | None = None
    steps: int | None = None
    step_size: Number | None = None
    decay: float | None = None
    gnp: GradientNormPenalty | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"attack": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> "AttackEntry":
        if self.attack == "noise" and self.steps is not None:
            raise ValueError("attack = 'noise': takes no steps")
        if self.gnp is not None and "gnp" not in self.attack.split("+"):
            raise ValueError(f'gnp is set, but attack = {self.attack!r} does not name it; write "gnp+{self.attack}"')
        self.build(Budget())
        return self

    def build(self, budget: Budget) -> Attack:
        """The composed attack."""
        return build(
            self.attack,
            name=self.name,
            epsilon=budget.epsilon if self.epsilon is None else self.epsilon,
            steps=budget.steps if self.steps is None else self.steps,
            step_size=self.step_size,
            decay=self.decay,
            transforms=None if self.gnp is None else (self.gnp,),
            seed=budget.seed,
        )


class Recipe(_Table):
    """A whole recipe.

    Attributes:
        data: Which images, and how they are prepared.
        sources: The models attacked.
        targets: The models scored.
        attacks: What is done to each image, from each source.
        budget: What every attack is given unless it says otherwise.
        engine: How many workers, and what each is given.
        batch_size: Images per gradient.
    """

    data: Data
    sources: tuple[Model, ...] = Field(min_length=1)
    targets: tuple[Model, ...] = Field(min_length=1)
    attacks: tuple[AttackEntry, ...] = Field(min_length=1)
    budget: Budget = Budget()
    engine: Pools = Pools()
    batch_size: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        _require_distinct("sources", (spec.name for spec in self.sources))
        _require_distinct("targets", (spec.name for spec in self.targets))
        _require_distinct("attacks", (attack.name for attack in self._attacks()))
        return self

    def job(self, *, limit: int | None = None) -> Job:
        """What the engine is given.

        Args:
            limit: Only the first so many images, whatever the recipe says.
        """
        return Job(
            data=self.data if limit is None else replace(self.data, limit=limit),
            sources=self.sources,
            attacks=self._attacks(),
            targets=self.targets,
            batch_size=self.batch_size,
        )

    def _attacks(self) -> tuple[Attack, ...]:
        return tuple(entry.build(self.budget) for entry in self.attacks)


def load(path: Path) -> Recipe:
    """Reads and validates a recipe.

    Raises:
        RecipeError: With one line per fault: where, what, and what would be accepted.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # TOML's own, and what UTF-8, long numbers and deep nesting raise
        raise RecipeError(f"{path}: not TOML: {_one_line(str(error))}") from error
    try:
        _require_plain(values, path)
        recipe = Recipe.model_validate(values)
        _require_unquoted(values, recipe, path)
    except ValidationError as error:
        faults = error.errors()
        inner = [fault["loc"] for fault in faults]
        # Where entries of a list are refused, the list counts as too short as well: said once is enough.
        told = [
            fault
            for fault in faults
            if fault["type"] != "too_short" or not any(loc[: len(fault["loc"])] == fault["loc"] != loc for loc in inner)
        ]
        raise RecipeError("\n".join(f"{path}: {_one_line(_fault(fault))}" for fault in told)) from error
    return recipe


def _require_plain(value: Any, path: Path, where: tuple[Any, ...] = ()) -> None:
    """Refuses what nothing in a recipe takes, and what Python lets pass: it counts true as 1, and has no largest int.

    Raises:
        RecipeError: A boolean, a number of more than TOML's 64 bits, or tables in tables without end.
    """
    place = f"{path}: {_one_line(_dotted(where[:_DEEPEST]))}"
    if len(where) > _DEEPEST:
        raise RecipeError(f"{place}…: nothing in a recipe lies so deep")
    if isinstance(value, bool):
        raise RecipeError(f"{place} = {str(value).lower()}: nothing in a recipe is true or false")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RecipeError(f"{place}: a whole number of more than 64 bits")
    for key, item in _items(value):
        _require_plain(item, path, (*where, key))


def _require_unquoted(written: Any, meant: Any, path: Path, where: tuple[Any, ...] = ()) -> None:
    """Refuses `steps = "10"`, which pydantic reads as 10: fractions alone are written as text.

    Raises:
        RecipeError: Text stands where a number is meant.
    """
    if isinstance(written, str) and isinstance(meant, (int, float)):
        raise RecipeError(f"{path}: {_one_line(f'{_dotted(where)} = {written!r}')}: write the number without quotes")
    for key, item in _items(written):
        _require_unquoted(item, meant[key] if isinstance(key, int) else getattr(meant, key), path, (*where, key))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()


def _dotted(where: Iterable[Any]) -> str:
    return ".".join(str(step) for step in where)


def _one_line(text: str) -> str:
    """Text without line breaks or other characters that a terminal obeys, of at most some lines' length."""
    plain = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text[:2000])
    return plain + "…" * (len(text) > 2000)


def _fault(fault: Any) -> str:
    """One line of what pydantic found."""
    where = _dotted(fault["loc"]) or "recipe"
    message = fault["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: unknown key{_nearest(str(fault['loc'][-1]), fault['loc'][:-1])}"
    if fault["type"] == "missing":
        return f"{where}: missing; it has no default"
    if fault["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where} = {fault['input']!r}: {message[0].lower()}{message[1:]}"


def _nearest(key: str, path: Iterable[Any]) -> str:
    """The known keys nearest to an unknown one, from the recipe's own schema."""
    schema = Recipe.model_json_schema()
    node = schema
    for step in path:
        node = node.get("items", node) if isinstance(step, int) else node.get("properties", {}).get(step, {})
        options = [node, *node.get("anyOf", [])]
        reference = next((option["$ref"] for option in options if "$ref" in option), None)
        node = schema["$defs"][reference.rsplit("/", 1)[1]] if reference else node
    known = list(node.get("properties", {}))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _require_distinct(field: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{field}: two are called {name!r}; give one a name of its own")
        seen.add(name)
