"""A TOML recipe for training → a validated lesson; in the words of the recipes for attacks."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline import config
from pipeline.config import AttackEntry, Budget, Model, Number
from pipeline.storage import absolute
from pipeline.training import Data, HeldOut, Lesson, Schedule


def _listed(value: Any) -> Any:
    """A name alone is a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataTable(_Table):
    """`[data]`: what is trained on.

    Attributes:
        stores: Where adversarial images lie, finalized: folders, or s3://bucket/prefix; several are read as one.
        classes: How many classes the labels know.
        datasets: Of these data alone, by the names that recipes gave them; by default all, as with those that follow.
        sources: From these models alone.
        attacks: Of these attacks alone.
        epsilon: Of this budget alone.
        success: On which targets the attack succeeded: `any`, `all`, or a target's name.
        clean: The share of clean images, at least 0 and less than 1.
        weights: Attack → how often each of its images comes in an epoch; by default once.
    """

    stores: Names = Field(min_length=1)
    classes: Annotated[int, Field(ge=2)] = 1000
    datasets: Names = ()
    sources: Names = ()
    attacks: Names = ()
    epsilon: Number | None = None
    success: str = ""
    clean: Annotated[float, Field(ge=0, lt=1)] = 0.5
    weights: dict[str, float] = {}


class HeldOutTable(_Table):
    """`[[held_out]]`: adversarial images that are not trained on, and their originals: what accuracy is measured on.

    Attributes:
        name: What tables call it.
        store: Where they lie, finalized.
        datasets: Of these data alone; by default all, as with those that follow.
        sources: From these models alone.
        attacks: Of these attacks alone.
    """

    name: str
    store: str
    datasets: Names = ()
    sources: Names = ()
    attacks: Names = ()


class Workers(_Table):
    """`[engine]`: who trains.

    Attributes:
        workers: Processes, each with a device.
        gpus_per_worker: By default 1 where the cluster has any; 0 for none.
        loaders: Processes beside each that read and decode.
        checkpoint_steps: How often the state is kept inside an epoch; at its end it always is.
    """

    workers: Annotated[int, Field(ge=1)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    loaders: Annotated[int, Field(ge=0)] = 2
    checkpoint_steps: Annotated[int, Field(ge=1)] = 500


class LessonRecipe(_Table):
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

    name: str = Field(min_length=1, max_length=100)
    model: Model
    data: DataTable
    held_out: tuple[HeldOutTable, ...] = Field(min_length=1)
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
        data = {**vars(self.data), "stores": tuple(map(absolute, self.data.stores))}
        (point,) = self.budget.points(self.attack)
        return Lesson(
            name=self.name,
            model=self.model,
            data=Data(**data),
            held_out=tuple(HeldOut(**{**vars(each), "store": absolute(each.store)}) for each in self.held_out),
            schedule=self.schedule,
            attack=self.attack.build(point),
            **vars(self.engine),
        )


def load(path: Path) -> Lesson:
    """Reads and validates a recipe for training.

    Raises:
        RecipeError: With one line per fault: where, what, and what would be accepted.
    """
    return config.read(path, LessonRecipe).lesson()
