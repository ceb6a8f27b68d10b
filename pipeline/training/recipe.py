"""A TOML recipe for training → a validated lesson; in the words of the recipes for attacks."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.plan import recipe
from pipeline.plan.recipe import AttackEntry, Budget, Model, number
from pipeline.storage import absolute
from pipeline.training import Data, HeldOut, Lesson, Schedule, Workers


def _named(value: Any) -> Any:
    """A table in which a name alone is a list of one, and a budget may be a fraction."""
    if not isinstance(value, dict):
        return value
    found = {key: [item] if key in _LISTS and isinstance(item, str) else item for key, item in value.items()}
    return found | ({"epsilon": number(found["epsilon"])} if "epsilon" in found else {})


_LISTS = {"stores", "datasets", "sources", "attacks"}


class LessonRecipe(BaseModel):
    """A whole recipe for training.

    Attributes:
        name: What its results are called: they lie in `training/NAME` of the store.
        model: What is trained, with the weights that it begins with: a tag, or a table as of a target.
        data: On what.
        held_out: What is measured after each epoch.
        schedule: How.
        attack: White-box, on the model itself: measured after each epoch; and what crafts images in training.
        budget: What that attack is given unless it says otherwise.
        engine: Who trains.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    model: Model
    data: Annotated[Data, BeforeValidator(_named)]
    held_out: tuple[Annotated[HeldOut, BeforeValidator(_named)], ...] = Field(min_length=1)
    schedule: Schedule = Schedule()
    attack: AttackEntry = Field(default_factory=lambda: AttackEntry(attack="i"))
    budget: Budget = Field(default_factory=lambda: Budget.model_validate({}))
    engine: Workers = Workers()

    @model_validator(mode="after")
    def _consistent(self) -> "LessonRecipe":
        names = [each.name for each in self.held_out]
        if len(set(names)) < len(names):
            raise ValueError("held_out: two are of one name; give each a name of its own")
        if len(list(self.budget.points(self.attack))) > 1:
            raise ValueError("budget: one epsilon and one number of steps; lists make several attacks")
        if self.schedule.crafted and not self.data.clean:
            raise ValueError("schedule: crafted: clean images are attacked, and data.clean = 0 leaves none")
        return self

    def lesson(self) -> Lesson:
        """What training is told."""
        (point,) = self.budget.points(self.attack)
        return Lesson(
            name=self.name,
            model=self.model,
            data=replace(self.data, stores=tuple(map(absolute, self.data.stores))),
            held_out=tuple(replace(each, store=absolute(each.store)) for each in self.held_out),
            schedule=self.schedule,
            attack=self.attack.build(point),
            engine=self.engine,
        )


def load(path: Path) -> Lesson:
    """Reads and validates a recipe for training.

    Raises:
        RecipeError: With one line per fault: where, what, and what would be accepted.
    """
    return recipe.read(path, LessonRecipe).lesson()
