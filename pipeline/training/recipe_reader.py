"""Training recipes: TOML → validated `TrainingRecipe`, with the same tables for models and attacks as other recipes."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.plan.numbers import parse_number
from pipeline.plan.recipe import AttackEntry, Budget
from pipeline.plan.recipe_fields import Model
from pipeline.plan.recipe_reader import load_toml
from pipeline.storage import absolute_url
from pipeline.training.recipe import HeldOutSet, Schedule, TrainingData, TrainingRecipe, Workers

_LISTS = {"stores", "datasets", "sources", "attacks"}


def _normalise(table: Any) -> Any:
    """Accepts a single name as a list of one, and a fraction as `epsilon`."""
    if not isinstance(table, dict):
        return table
    lists = {key: [item] if key in _LISTS and isinstance(item, str) else item for key, item in table.items()}
    return lists | ({"epsilon": parse_number(lists["epsilon"])} if "epsilon" in lists else {})


class TrainingRecipeFile(BaseModel):
    """The content of a training recipe's TOML file.

    Attributes:
        name: Name of the run: its results lie in `training/NAME` of the store.
        model: The model that is trained, with its initial weights: a tag, or a table as for a target.
        data: The images that it is trained on.
        held_out: The images that accuracy is measured on after each epoch.
        schedule: Optimization settings.
        attack: White-box attack on the model itself: measured after each epoch, and used to craft training images.
        budget: Values that the attack gets unless it sets its own.
        engine: Processes that train.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    model: Model
    data: Annotated[TrainingData, BeforeValidator(_normalise)]
    held_out: tuple[Annotated[HeldOutSet, BeforeValidator(_normalise)], ...] = Field(min_length=1)
    schedule: Schedule = Schedule()
    attack: AttackEntry = Field(default_factory=lambda: AttackEntry(attack="i"))
    budget: Budget = Field(default_factory=lambda: Budget.model_validate({}))
    engine: Workers = Workers()

    @model_validator(mode="after")
    def _require_consistent(self) -> "TrainingRecipeFile":
        names = [held_out.name for held_out in self.held_out]
        if len(set(names)) < len(names):
            raise ValueError("held_out: two have the same name; give each a name of its own")
        if len(list(self.budget.grid_points(self.attack))) > 1:
            raise ValueError("budget: one epsilon and one number of steps; lists make several attacks")
        if self.schedule.crafted and not self.data.clean:
            raise ValueError("schedule: crafted: clean images are attacked, and data.clean = 0 leaves none")
        return self

    def build(self) -> TrainingRecipe:
        """The settings, with absolute addresses of stores and the attack built."""
        (point,) = self.budget.grid_points(self.attack)
        return TrainingRecipe(
            name=self.name,
            model=self.model,
            data=replace(self.data, stores=tuple(map(absolute_url, self.data.stores))),
            held_out=tuple(replace(held_out, store=absolute_url(held_out.store)) for held_out in self.held_out),
            schedule=self.schedule,
            attack=self.attack.build(point),
            engine=self.engine,
        )


def load_training_recipe(path: Path) -> TrainingRecipe:
    """Reads and validates a training recipe.

    Raises:
        RecipeError: With one line per fault: where, what, and what would be accepted.
    """
    return load_toml(path, TrainingRecipeFile).build()
