"""What a training run is told: frozen dataclasses, no logic; a recipe is held to the bounds that stand here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Literal

from annotated_types import Ge, Lt, MinLen

from pipeline.attack.recipe import Attack
from pipeline.dataset.snapshot import Choice
from pipeline.models.load import ModelSpec


@dataclass(frozen=True)
class Data:
    """What is trained on.

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

    stores: Annotated[tuple[str, ...], MinLen(1)]
    classes: Annotated[int, Ge(2)] = 1000
    datasets: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    epsilon: Fraction | None = None
    success: str = ""
    clean: Annotated[float, Ge(0), Lt(1)] = 0.5
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def choice(self) -> Choice:
        """Which images these are."""
        return Choice(self.datasets, self.sources, self.attacks, self.epsilon, self.success)


@dataclass(frozen=True)
class HeldOut:
    """Adversarial images that are not trained on, and their originals: what accuracy is measured on.

    Attributes:
        name: What tables call it.
        store: Where they lie, finalized.
        datasets: Of these data alone; by default all, as with those that follow.
        sources: From these models alone.
        attacks: Of these attacks alone.
    """

    name: str
    store: str
    datasets: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()

    @property
    def choice(self) -> Choice:
        """Which images these are."""
        return Choice(self.datasets, self.sources, self.attacks)


@dataclass(frozen=True)
class Schedule:
    """How a model is trained.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images of a step of one worker.
        learning_rate: Of AdamW, at its highest: after a linear warm-up, and before it goes down as a cosine.
        weight_decay: Of AdamW.
        warmup: The share of steps that warm up.
        ema: Decay of the moving average of the weights, which is what is measured and kept; 0 for none.
        precision: In which the network computes: `float32`, or `bfloat16` (weights and their updates stay float32).
        augment: `none`, or `flip`: half of the images are mirrored.
        crafted: The share of clean images that are attacked anew, on the model as it stands.
        seed: Of the order, the mirroring and what attacks draw.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    ema: float = 0.99
    precision: Literal["float32", "bfloat16"] = "float32"
    augment: Literal["none", "flip"] = "none"
    crafted: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(f"epochs = {self.epochs}, batch_size = {self.batch_size}: at least 1, and 2")
        for name in ("warmup", "ema", "crafted"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 0 and less than 1")
        if not 0 < self.learning_rate < float("inf") or self.weight_decay < 0 or self.seed < 0:
            raise ValueError("learning_rate must be positive, weight_decay and seed not negative")


@dataclass(frozen=True)
class Workers:
    """Who trains.

    Attributes:
        workers: Processes, each with a device.
        gpus_per_worker: By default 1 where the cluster has any; 0 for none.
        loaders: Processes beside each that read and decode.
        checkpoint_steps: How often the state is kept inside an epoch; at its end it always is.
    """

    workers: Annotated[int, Ge(1)] = 1
    gpus_per_worker: Annotated[float, Ge(0)] | None = None
    loaders: Annotated[int, Ge(0)] = 2
    checkpoint_steps: Annotated[int, Ge(1)] = 500


@dataclass(frozen=True)
class Lesson:
    """A whole training run.

    Attributes:
        name: What its results are called: they lie in `training/NAME` of the store.
        model: What is trained, with the weights that it begins with.
        data: On what.
        held_out: What is measured after each epoch.
        schedule: How.
        attack: White-box, on the model itself: measured after each epoch; and what crafts images in training.
        engine: Who trains.
    """

    name: str
    model: ModelSpec
    data: Data
    held_out: tuple[HeldOut, ...]
    schedule: Schedule
    attack: Attack
    engine: Workers = Workers()
