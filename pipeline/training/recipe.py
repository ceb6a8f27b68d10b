"""Settings of a training run: frozen dataclasses that a training recipe fills, with the bounds of their values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Literal

from annotated_types import Ge, Lt, MinLen

from pipeline.attack.recipe import Attack
from pipeline.dataset.mix import Mix
from pipeline.dataset.snapshot import ImageFilter
from pipeline.models.spec import ModelSpec


@dataclass(frozen=True)
class TrainingData:
    """The images that a model is trained on.

    Attributes:
        stores: Finalized stores of adversarial images: folders, or s3://bucket/prefix; several are read as one.
        classes: Number of classes of the labels.
        datasets: Use only these data, by the names that recipes gave them; by default all.
        sources: Use only images from these source models; by default all.
        attacks: Use only these attacks; by default all.
        epsilon: Use only attacks with this budget; by default all.
        success: Use only images on which the attack succeeded: on `any` or `all` targets, or on the target named.
        clean: Share of clean images, at least 0 and less than 1.
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
    def image_filter(self) -> ImageFilter:
        """Which images of a store are used."""
        return ImageFilter(self.datasets, self.sources, self.attacks, self.epsilon, self.success)


@dataclass(frozen=True)
class HeldOutSet:
    """Adversarial images that are not trained on, and their originals: accuracy is measured on them.

    Attributes:
        name: Name of the set in tables.
        store: Finalized store of the images.
        datasets: Use only these data, by the names that recipes gave them; by default all.
        sources: Use only images from these source models; by default all.
        attacks: Use only these attacks; by default all.
    """

    name: str
    store: str
    datasets: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()

    @property
    def image_filter(self) -> ImageFilter:
        """Which images of the store are used."""
        return ImageFilter(self.datasets, self.sources, self.attacks)


@dataclass(frozen=True)
class Schedule:
    """Optimization settings: epochs, batch size, AdamW, averaging, precision, augmentation.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images per step of one worker.
        learning_rate: AdamW's highest learning rate, after a linear warm-up and before a cosine decay.
        weight_decay: AdamW's weight decay.
        warmup: Share of the steps that warm up.
        ema: Decay of the moving average of the weights, which is what is measured and kept; 0 for none.
        precision: Precision of the network: `float32`, or `bfloat16` (weights and their updates stay float32).
        augment: `none`, or `flip`: half of the images are mirrored.
        crafted: Share of the clean images that are attacked anew, on the current model.
        seed: Seed of the order, the mirroring and the attacks' random draws.
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
    """Processes of a training run, and how often they save its state.

    Attributes:
        workers: Number of training processes, each with a device.
        gpus_per_worker: GPUs of each; by default 1 where the cluster has any; 0 for none.
        loaders: Number of processes beside each worker that read and decode images.
        checkpoint_steps: Save the state after this number of steps; it is also saved after each epoch.
    """

    workers: Annotated[int, Ge(1)] = 1
    gpus_per_worker: Annotated[float, Ge(0)] | None = None
    loaders: Annotated[int, Ge(0)] = 2
    checkpoint_steps: Annotated[int, Ge(1)] = 500


@dataclass(frozen=True)
class TrainingRecipe:
    """All settings of a training run.

    Attributes:
        name: Name of the run: its results lie in `training/NAME` of the store.
        model: The model that is trained, with its initial weights.
        data: The images that it is trained on.
        held_out: The images that accuracy is measured on after each epoch.
        schedule: Optimization settings.
        attack: White-box attack on the model itself: measured after each epoch, and used to craft training images.
        engine: Processes that train.
    """

    name: str
    model: ModelSpec
    data: TrainingData
    held_out: tuple[HeldOutSet, ...]
    schedule: Schedule
    attack: Attack
    engine: Workers = Workers()

    @property
    def mix(self) -> Mix:
        """Composition and order of an epoch."""
        schedule, data = self.schedule, self.data
        return Mix(schedule.batch_size, clean=data.clean, weights=data.weights, seed=schedule.seed)
