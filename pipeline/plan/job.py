"""Jobs: a recipe in the components' own terms."""

from dataclasses import dataclass
from typing import Literal

from pipeline.attack.recipe import Attack
from pipeline.models.spec import EnsembleSpec, ModelSpec, TargetSpec
from pipeline.plan.data_spec import DataSpec
from pipeline.plan.external import ExternalAttack, ExternalImages


@dataclass(frozen=True)
class Job:
    """What a run is asked to compute.

    Attributes:
        data: The images.
        sources: The models attacked, or a folder of another program's images.
        attacks: The attacks, each made on every image from every source.
        targets: The models scored.
        batch_size: Images per gradient, and per prediction; a rerun is byte-identical only with the same. `auto` lets
            each worker measure the fastest; None is 32 on a CPU, and `auto` on a GPU.
    """

    data: DataSpec
    sources: tuple[ModelSpec | EnsembleSpec | ExternalImages, ...]
    attacks: tuple[Attack | ExternalAttack, ...]
    targets: tuple[TargetSpec, ...]
    batch_size: int | Literal["auto"] | None = None
