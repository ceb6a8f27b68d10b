"""A TOML recipe → validated, frozen models → the components' own terms.

Unknown keys are refused, and every refusal names the field, the value and what would be accepted, before any work
starts. Data, models, preparation, transforms and pools are the components' own dataclasses: what each accepts is said
where it lives.
"""

import datetime
import difflib
import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)

from pipeline.attack.ball import BallNorm
from pipeline.attack.loop import Wanted
from pipeline.attack.losses import Loss
from pipeline.attack.precision import Precision
from pipeline.attack.recipe import TRANSFORMS, VIEWS, Attack, build, require_budget
from pipeline.errors import RecipeError
from pipeline.models import load as models
from pipeline.models.load import EnsembleSpec, ModelSpec, TargetSpec
from pipeline.plan.pools import Pools
from pipeline.plan.resolve import DataSpec, Job
from pipeline.storage import absolute

Spec = TypeVar("Spec", bound=ModelSpec)
Table = TypeVar("Table", bound=BaseModel)

# Of bounded length: "1e999999999" is a number that takes all of the memory and of the day.
_NUMBER = re.compile(r"(?=[-+.]{0,2}[0-9])[-+]?[0-9]{0,30}(/[0-9]{1,30}|\.[0-9]{0,30})?([eE][-+]?[0-9]{1,3})?")


def _tag(value: Any) -> Any:
    """A model may be its tag alone."""
    return {"model": value} if isinstance(value, str) else value


def _one_pattern(value: Any) -> Any:
    """Shards may be one pattern alone."""
    if isinstance(value, dict) and isinstance(value.get("shards"), str):
        return {**value, "shards": [value["shards"]]}
    return value


def _listed(value: Any) -> Any:
    """A value alone is a list of one."""
    return value if isinstance(value, (list, tuple)) else (value,)


def _wanted(value: Any) -> Any:
    if value is not None and not isinstance(value, int) and value not in ("shard", "random", "least-likely"):
        raise ValueError(f'{value!r} is no target; write "shard", "random", "least-likely" or a class index')
    return value


def _known(spec: Spec) -> Spec:
    models.check(spec)
    told: dict[str, Any] = {} if spec.checkpoint is None else {"checkpoint": absolute(spec.checkpoint)}
    if isinstance(spec, TargetSpec):
        for name in ("nrp", "hgd"):
            purifier = getattr(spec, name)
            told |= {} if purifier is None else {name: replace(purifier, checkpoint=absolute(purifier.checkpoint))}
    return replace(spec, **told)


def _tags(value: Any) -> Any:
    """Each of an ensemble's models may be its tag alone."""
    if isinstance(value, dict) and isinstance(value.get("ensemble"), list):
        return {**value, "ensemble": [_tag(member) for member in value["ensemble"]]}
    return value


def _all_known(spec: EnsembleSpec) -> EnsembleSpec:
    return replace(spec, ensemble=tuple(map(_known, spec.ensemble)))


def number(value: Any) -> Fraction:
    """A number as its digits say, not as the nearest binary fraction: 0.1 is 1/10."""
    try:
        if _NUMBER.fullmatch(str(value)):
            return Fraction(str(value))
    except ZeroDivisionError:
        pass
    raise ValueError(f'{value!r} is no number; write a number, or a fraction such as "16/255"')


def _fractions(value: Any) -> Any:
    """A table whose numbers may be fractions."""
    if not isinstance(value, dict):
        return value
    found = dict(value)
    for name, item in value.items():
        if isinstance(item, str) and "/" in item:
            try:
                found[name] = float(number(item))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return found


_FRACTIONS = BeforeValidator(_fractions)


def budget(text: str, norm: BallNorm) -> Fraction:
    """A budget on [0, 1] as somebody writes it: 16/255, 0.05.

    Raises:
        RecipeError: It is none.
    """
    try:
        epsilon = number(text)
    except ValueError as error:
        raise RecipeError(f"epsilon: {error}") from error
    try:
        require_budget(epsilon, norm)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return epsilon


# What the deepest key of a recipe is: attacks.1.gnp.r, with room to name a wrong one below.
_DEEPEST = 10

# The attacks that the budget's steps do not concern.
_STEPLESS = {"noise", "fgsm"}
# Each is a folder of markers.
_MOST_ATTACKS = 1000

Number = Annotated[Fraction, BeforeValidator(number)]
Data = Annotated[DataSpec, BeforeValidator(_one_pattern)]
Model = Annotated[ModelSpec, BeforeValidator(_tag), AfterValidator(_known)]
Target = Annotated[TargetSpec, BeforeValidator(_tag), AfterValidator(_known)]
Ensemble = Annotated[EnsembleSpec, BeforeValidator(_tags), AfterValidator(_all_known)]
# What pydantic's places call the two kinds of source.
_KINDS = ("one model", "several models")
_TITLES = (ModelSpec.__name__, EnsembleSpec.__name__)
Source = Annotated[
    Annotated[Model, Tag(_KINDS[0])] | Annotated[Ensemble, Tag(_KINDS[1])],
    Discriminator(lambda value: _KINDS[isinstance(value, dict) and "ensemble" in value]),
]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Point:
    """What an attack is given unless it says otherwise; one point of the budget's grid.

    Attributes:
        epsilon: Budget on [0, 1].
        steps: Iterations T.
        seed: Seed of every draw.
        axes: What tells it from the other points, as an attack's name is to say it.
    """

    epsilon: Fraction
    steps: int
    seed: int
    axes: tuple[str, ...] = ()


class Budget(_Table):
    """`[budget]`: what every attack is given unless it says otherwise; a list makes every attack once for each value.

    Attributes:
        epsilon: Budget on [0, 1], as a number or a fraction such as "16/255".
        steps: Iterations T.
        seed: Seed of every draw.
    """

    epsilon: Annotated[tuple[Number, ...], BeforeValidator(_listed)] = Field((Fraction(16, 255),), min_length=1)
    steps: Annotated[tuple[int, ...], BeforeValidator(_listed)] = Field((10,), min_length=1)
    seed: int = 0

    def points(self, entry: "_AttackEntry") -> Iterator[Point]:
        """What is left to the budget by an attack, at every point of the grid."""
        epsilons = self.epsilon if entry.epsilon is None else self.epsilon[:1]
        steps = self.steps if entry.steps is None and not entry.stepless else self.steps[:1]
        for epsilon, count in itertools.product(epsilons, steps):
            axes = [f"epsilon={epsilon}"] * (len(epsilons) > 1) + [f"steps={count}"] * (len(steps) > 1)
            yield Point(epsilon, count, self.seed, tuple(axes))


class _AttackEntry(_Table):
    """`[[attacks]]`: a combination by name, such as "gnp+mi+di+ti", or spelled out.

    A list, wherever a value stands, makes the attack once for each of its values: an ablation is one entry.

    Attributes:
        attack: `noise`, or a base, views and transforms joined by +; see `pipeline.attack.recipe.build`.
        name: What results call it; by default `attack`. Where lists make several, their values are added.
        epsilon: By default the budget's.
        steps: By default the budget's.
        step_size: By default epsilon/steps.
        decay: By default the base's.
        norm: Of the ball: "linf" or "l2".
        loss: "cross-entropy", "logit" or "margin".
        target_class: For a targeted attack: "shard", "random", "least-likely" or a class.
        precision: In which the source is differentiated: "float32", "tf32", "bfloat16", or "auto": bfloat16 where every
            part allows it; by default float32.
    """

    attack: str
    name: str = ""
    epsilon: Number | None = None
    steps: int | None = None
    step_size: Number | None = None
    decay: float | None = None
    norm: BallNorm = "linf"
    loss: Loss | None = None
    target_class: Annotated[Wanted | None, BeforeValidator(_wanted)] = None
    precision: Precision | Literal["auto"] | None = None

    @property
    def stepless(self) -> bool:
        """Whether the budget's steps do not concern it."""
        return not _STEPLESS.isdisjoint(self.attack.split("+"))

    @model_validator(mode="after")
    def _consistent(self) -> "_AttackEntry":
        self.build(Point(Fraction(16, 255), 10, 0))
        return self

    def build(self, point: Point) -> Attack:
        """The composed attack."""
        parts = {name: getattr(self, name) for name in (*VIEWS, *TRANSFORMS)}
        return build(
            self.attack,
            name=_labelled(self.name or self.attack, point.axes),
            epsilon=point.epsilon if self.epsilon is None else self.epsilon,
            steps=point.steps if self.steps is None and not self.stepless else self.steps,
            step_size=self.step_size,
            decay=self.decay,
            norm=self.norm,
            loss=self.loss,
            target_class=self.target_class,
            precision=self.precision,
            parts={name: part for name, part in parts.items() if part is not None},
            seed=point.seed,
        )


if TYPE_CHECKING:
    AttackEntry = _AttackEntry
else:  # with a table of settings for each part that `attack` may name
    _PARTS = {name: (Annotated[kind | None, _FRACTIONS], None) for name, kind in {**VIEWS, **TRANSFORMS}.items()}
    AttackEntry = create_model("AttackEntry", __base__=_AttackEntry, **_PARTS)


def _grid(value: Any) -> Any:
    """One entry of `attacks` as every attack that it stands for."""
    if not isinstance(value, dict):
        return [{"attack": value}]
    for key, item in value.items():
        if isinstance(item, list) and any(isinstance(each, dict) for each in item):
            raise ValueError(f"{key} is a list of tables; lists go inside: {key} = {{ ... = [ ... ] }}")
    axes: list[tuple[tuple[str, ...], list[Any]]]
    axes = [((key,), item) for key, item in value.items() if isinstance(item, list)]
    axes += [
        ((key, inner), item)
        for key, table in value.items()
        if isinstance(table, dict)
        for inner, item in table.items()
        if isinstance(item, list)
    ]
    count = math.prod(len(values) for _, values in axes)
    if not 1 <= count <= _MOST_ATTACKS:
        raise ValueError(f"its lists make {count} attacks; from 1 to {_MOST_ATTACKS} can be")
    return [_at(value, dict(zip((path for path, _ in axes), point, strict=True))) for point in _points(axes)]


def _points(axes: Sequence[tuple[tuple[str, ...], list[Any]]]) -> Iterator[tuple[Any, ...]]:
    return itertools.product(*(values for _, values in axes))


def _at(entry: Mapping[str, Any], point: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """An entry with one value in each list's place, and a name that says which."""
    found = {key: dict(item) if isinstance(item, dict) else item for key, item in entry.items()}
    for path, item in point.items():
        (found[path[0]] if len(path) > 1 else found)[path[-1]] = item
    if point:
        told = [f"{'.'.join(path)}={item}" for path, item in point.items() if path not in (("attack",), ("name",))]
        found["name"] = _labelled(str(found.get("name") or found.get("attack")), told)
    return found


def _labelled(name: str, axes: Sequence[str]) -> str:
    """`gnp+mi[gnp.beta=0.4]`, `gnp+mi[gnp.beta=0.4,steps=20]`."""
    if not axes:
        return name
    return f"{name.removesuffix(']')}{',' if name.endswith(']') else '['}{','.join(axes)}]"


class Recipe(_Table):
    """A whole recipe.

    Attributes:
        data: Which images, and how they are prepared.
        sources: The models attacked.
        targets: The models scored.
        attacks: What is done to each image, from each source.
        budget: What every attack is given unless it says otherwise.
        engine: How many workers, and what each is given.
        batch_size: Images per gradient, and per prediction; "auto" tries what is fastest, on each worker's device for
            each model. Rounding depends on it, so runs of "auto" need not give the same bytes.
    """

    data: Data
    sources: tuple[Source, ...] = Field(min_length=1)
    targets: tuple[Target, ...] = Field(min_length=1)
    attacks: tuple[Annotated[tuple[AttackEntry, ...], BeforeValidator(_grid)], ...] = Field(min_length=1)
    budget: Budget = Field(default_factory=lambda: Budget.model_validate({}))
    engine: Pools = Pools()
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 32

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        _require_distinct("sources", (spec.name for spec in self.sources))
        _require_distinct("targets", (spec.name for spec in self.targets))
        attacks = self._attacks()
        _require_distinct("attacks", (attack.name for attack in attacks))
        if len(attacks) > _MOST_ATTACKS:
            raise ValueError(f"attacks: with the budget's lists they are {len(attacks)}; {_MOST_ATTACKS} can be")
        for attack in attacks:
            if isinstance(attack.target_class, int) and attack.target_class >= self.data.classes:
                told = f"target_class = {attack.target_class}, and data.classes = {self.data.classes}"
                raise ValueError(f"attacks: {attack.name}: {told}: classes count from 0")
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
        points = (
            (entry, point) for entries in self.attacks for entry in entries for point in self.budget.points(entry)
        )
        return tuple(_built(entry, point) for entry, point in points)


def _built(entry: _AttackEntry, point: Point) -> Attack:
    try:
        return entry.build(point)
    except ValueError as error:  # of the budget, or of both: by themselves entries are sound
        raise ValueError(f"attacks: {entry.name or entry.attack}: {error}") from error


def load(path: Path) -> Recipe:
    """Reads and validates a recipe; see `read`."""
    return read(path, Recipe)


def read(path: Path, kind: type[Table]) -> Table:
    """Reads and validates a TOML file of some kind.

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
        recipe = kind.model_validate(values)
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
        lines = dict.fromkeys(
            f"{path}: {_one_line(_fault(fault, values, kind))}" for fault in told
        )  # once for a whole grid
        raise RecipeError("\n".join(lines)) from error
    return recipe


def _require_plain(value: Any, path: Path, where: tuple[Any, ...] = ()) -> None:
    """Refuses what nothing in a recipe takes, and what Python lets pass: it counts true as 1, and has no largest int.

    Raises:
        RecipeError: A boolean, a number of more than TOML's 64 bits, or tables in tables without end.
    """
    place = f"{path}: {_one_line(_dotted(where[:_DEEPEST]))}"
    if len(where) > _DEEPEST:
        raise RecipeError(f"{place}…: nothing in a recipe lies so deep")
    if isinstance(value, datetime.date | datetime.time):
        raise RecipeError(f"{place} = {value}: nothing in a recipe is a date or a time")
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
    if isinstance(meant, tuple) and meant and not isinstance(written, list):  # a value that stands for a list of one
        meant = meant[0]
    if isinstance(written, str) and isinstance(meant, (int, float)) and "/" not in written:
        raise RecipeError(f"{path}: {_one_line(f'{_dotted(where)} = {written!r}')}: write the number without quotes")
    for key, item in _items(written):
        # A list where one value is meant makes a grid, of values alike.
        inner = getattr(meant, key) if isinstance(key, str) else meant[key] if isinstance(meant, tuple) else meant
        _require_unquoted(item, inner, path, (*where, key))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()


def _dotted(where: Iterable[Any]) -> str:
    return ".".join(str(step) for step in where)


def _one_line(text: str) -> str:
    """Text without line breaks or other characters that a terminal obeys, of at most some lines' length."""
    plain = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text[:2000])
    return plain + "…" * (len(text) > 2000)


def _written(loc: Iterable[Any], values: Any) -> Iterator[Any]:
    """The steps of a place that the recipe has; pydantic's also count the points of grids and name types."""
    for step in loc:
        if isinstance(step, str) and isinstance(values, dict) and step not in _KINDS:
            yield step
            values = values.get(step)
        elif isinstance(step, int) and isinstance(values, list):
            yield step
            values = values[step]


def _fault(fault: Any, values: Any, kind: type[BaseModel]) -> str:
    """One line of what pydantic found in a recipe's values."""
    where = _dotted(_written(fault["loc"], values)) or "recipe"
    message = fault["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: unknown key{_nearest(str(fault['loc'][-1]), fault['loc'][:-1], kind)}"
    if fault["type"] == "missing":
        return f"{where}: missing; it has no default"
    if fault["type"] == "value_error":
        return f"{where}: {message}"
    if fault["type"] == "too_short":
        message = "is empty; at least one is wanted"
    if fault["type"] == "dataclass_type":
        message = "a table is wanted, such as { ... }"
    return f"{where} = {fault['input']!r}: {message[0].lower()}{message[1:]}"


def _nearest(key: str, path: Iterable[Any], kind: type[BaseModel]) -> str:
    """The known keys nearest to an unknown one, from the recipe's own schema."""
    schema = kind.model_json_schema()
    nodes: list[Mapping[str, Any]] = [schema]
    for step in path:
        if step in _KINDS:
            nodes = [node for node in nodes if node.get("title") == _TITLES[_KINDS.index(step)]]
        else:
            nodes = [inner for node in nodes for inner in _inner(node, step, schema["$defs"])]
    known = list(dict.fromkeys(name for node in nodes for name in node.get("properties", {})))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _inner(node: Mapping[str, Any], step: Any, named: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas of what lies one step inside another schema: all that it may be."""
    inner = node.get("items", {}) if isinstance(step, int) else node.get("properties", {}).get(step, {})
    for option in (inner, *inner.get("anyOf", ()), *inner.get("oneOf", ())):
        yield named[option["$ref"].rsplit("/", 1)[1]] if "$ref" in option else option


def _require_distinct(field: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{field}: two are called {name!r}; leave one out, or give one a name of its own")
        seen.add(name)
