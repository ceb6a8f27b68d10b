"""The recipe's own models: a TOML recipe, validated and frozen, and the attacks that its entries and grids stand for.

Unknown keys are refused, and every error names the field, the value and what would be accepted, before any work starts.
Data, models, preparation, parts of attacks and pools are the components' own dataclasses, which validate themselves.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from pipeline.attack.ball import BallNorm
from pipeline.attack.loop import TargetClass
from pipeline.attack.losses import Loss
from pipeline.attack.precision import Precision
from pipeline.attack.recipe import GRADIENT_TRANSFORMS, INPUT_TRANSFORMS, Attack, build
from pipeline.plan.job import Job
from pipeline.plan.pools import Pools
from pipeline.plan.recipe_fields import FRACTIONS, Data, Number, Source, Target, as_list, require_target_class
from pipeline.plan.recipe_grid import MAX_ATTACKS, add_labels, expand_lists

# The attacks that do not use the budget's steps.
_STEPLESS = {"noise", "fgsm"}


class _Table(BaseModel):
    """A frozen TOML table that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class GridPoint:
    """One combination of the budget's values: what an attack gets unless its entry sets it.

    Attributes:
        epsilon: Budget on [0, 1].
        steps: Iterations T.
        seed: Seed of every random draw.
        labels: Values that an attack's name states, such as `steps=20`: those of lists with several values.
    """

    epsilon: Fraction
    steps: int
    seed: int
    labels: tuple[str, ...] = ()


class Budget(_Table):
    """`[budget]`: what every attack gets unless its entry sets it; a list makes every attack once for each value.

    Attributes:
        epsilon: Budget on [0, 1], as a number or a fraction such as "16/255".
        steps: Iterations T.
        seed: Seed of every random draw.
    """

    epsilon: Annotated[tuple[Number, ...], BeforeValidator(as_list)] = Field((Fraction(16, 255),), min_length=1)
    steps: Annotated[tuple[int, ...], BeforeValidator(as_list)] = Field((10,), min_length=1)
    seed: int = 0

    def grid_points(self, entry: "_AttackEntryBase") -> Iterator[GridPoint]:
        """Every combination of the budget's values that an attack's entry does not set itself."""
        epsilons = self.epsilon if entry.epsilon is None else self.epsilon[:1]
        counts = self.steps if entry.steps is None and not entry.stepless else self.steps[:1]
        for epsilon, steps in itertools.product(epsilons, counts):
            labels = [f"epsilon={epsilon}"] * (len(epsilons) > 1) + [f"steps={steps}"] * (len(counts) > 1)
            yield GridPoint(epsilon, steps, self.seed, tuple(labels))


class _AttackEntryBase(_Table):
    """`[[attacks]]`: an attack by name, such as "gnp+mi+di+ti", with its settings.

    A list in place of a value makes the attack once for each value of the list: an ablation is one entry.

    Attributes:
        attack: `noise`, or a base and transforms joined by +; see `pipeline.attack.recipe.build`.
        name: Its name in results; by default `attack`. Where lists make several attacks, their values are added.
        epsilon: Its budget; by default that of `[budget]`.
        steps: Its iterations; by default those of `[budget]`.
        step_size: Step on [0, 1]; by default epsilon/steps.
        decay: Decay μ of the accumulated gradient; by default the one of the attack's base.
        norm: Norm of the ball around the original: "linf" or "l2".
        loss: "cross-entropy", "logit" or "margin".
        target_class: For a targeted attack: "shard", "random", "least-likely" or a class.
        precision: Precision of the source's gradients: "float32", "tf32", "bfloat16", or "auto": bfloat16 where every
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
    target_class: Annotated[TargetClass | None, BeforeValidator(require_target_class)] = None
    precision: Precision | Literal["auto"] | None = None

    @property
    def stepless(self) -> bool:
        """Whether the attack has no number of steps to set."""
        return not _STEPLESS.isdisjoint(self.attack.split("+"))

    @model_validator(mode="after")
    def _require_valid_attack(self) -> "_AttackEntryBase":
        self.build(GridPoint(Fraction(16, 255), 10, 0))
        return self

    def build(self, point: GridPoint) -> Attack:
        """The attack at one point of the budget's grid."""
        parts = {name: getattr(self, name) for name in (*INPUT_TRANSFORMS, *GRADIENT_TRANSFORMS)}
        return build(
            self.attack,
            name=add_labels(self.name or self.attack, point.labels),
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
    AttackEntry = _AttackEntryBase
else:  # with a table of settings for each part that `attack` may name
    _PARTS = {
        name: (Annotated[kind | None, FRACTIONS], None)
        for name, kind in {**INPUT_TRANSFORMS, **GRADIENT_TRANSFORMS}.items()
    }
    AttackEntry = create_model("AttackEntry", __base__=_AttackEntryBase, **_PARTS)


class Recipe(_Table):
    """A whole recipe.

    Attributes:
        data: Which images are attacked, and how they are prepared.
        sources: The models attacked.
        targets: The models scored.
        attacks: The attacks, each made on every image from every source.
        budget: What every attack gets unless its entry sets it.
        engine: The number of workers, and the resources of each.
        batch_size: Images per gradient, and per prediction; by default 32 on a CPU, and "auto" on a GPU, which tries
            what is fastest, on each worker's device for each model. Rounding depends on it, so runs of "auto" need not
            give the same bytes.
    """

    data: Data
    sources: tuple[Source, ...] = Field(min_length=1)
    targets: tuple[Target, ...] = Field(min_length=1)
    attacks: tuple[Annotated[tuple[AttackEntry, ...], BeforeValidator(expand_lists)], ...] = Field(min_length=1)
    budget: Budget = Field(default_factory=lambda: Budget.model_validate({}))
    engine: Pools = Pools()
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None

    @model_validator(mode="after")
    def _require_consistent(self) -> "Recipe":
        _require_distinct("sources", (spec.name for spec in self.sources))
        _require_distinct("targets", (spec.name for spec in self.targets))
        attacks = self._build_attacks()
        _require_distinct("attacks", (attack.name for attack in attacks))
        if len(attacks) > MAX_ATTACKS:
            raise ValueError(f"attacks: with the budget's lists they are {len(attacks)}; {MAX_ATTACKS} can be")
        for attack in attacks:
            if isinstance(attack.target_class, int) and attack.target_class >= self.data.classes:
                conflict = f"target_class = {attack.target_class}, and data.classes = {self.data.classes}"
                raise ValueError(f"attacks: {attack.name}: {conflict}: classes count from 0")
        return self

    def job(self, *, limit: int | None = None) -> Job:
        """The recipe in the components' own terms.

        Args:
            limit: Takes only the first images, at most this number, whatever the recipe sets.
        """
        return Job(
            data=self.data if limit is None else replace(self.data, limit=limit),
            sources=self.sources,
            attacks=self._build_attacks(),
            targets=self.targets,
            batch_size=self.batch_size,
        )

    def _build_attacks(self) -> tuple[Attack, ...]:
        entries = itertools.chain.from_iterable(self.attacks)
        return tuple(_build_attack(entry, point) for entry in entries for point in self.budget.grid_points(entry))


def _build_attack(entry: _AttackEntryBase, point: GridPoint) -> Attack:
    try:
        return entry.build(point)
    except ValueError as error:  # the budget's fault, or of both together: every entry was valid by itself
        raise ValueError(f"attacks: {entry.name or entry.attack}: {error}") from error


def _require_distinct(field: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{field}: two are called {name!r}; leave one out, or give one a name of its own")
        seen.add(name)
