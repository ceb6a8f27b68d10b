"""Runs `gnp score`: scores adversarial images of another tool on a recipe's targets, into the same store."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from jobs.runners import generate
from pipeline.child_process import run_in_child_process
from pipeline.plan.outline import PickledPlan
from pipeline.plan.pools import Pools
from pipeline.storage import Storage

if TYPE_CHECKING:
    from pipeline.plan.external import ExternalAttack, ExternalImages


@dataclass(frozen=True)
class ExternalFolder:
    """A folder of adversarial images, as the command line describes it.

    Attributes:
        folder: A folder or `s3://` URL.
        name: Name of the attack in the results.
        source: Name of the attacked model in the results.
        epsilon: Budget of the attack, as recipes write it.
        norm: Norm of the budget.
    """

    folder: str
    name: str
    source: str = "unknown"
    epsilon: str = "16/255"
    norm: Literal["linf", "l2"] = "linf"


def run(
    folder: ExternalFolder,
    recipe: Path,
    store: str,
    *,
    console: Console,
    limit: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
) -> int:
    """Scores a folder; returns the exit code, as `generate.run` does.

    Raises:
        GnpError: The run could not start or continue.
    """
    code = generate.run_job(
        partial(_prepare, folder, recipe, store, limit),
        store,
        console=console,
        address=address,
        retry_failed=retry_failed,
    )
    unscored, images = run_in_child_process(
        partial(_unscored, folder, store),
        task="counting the images that were not scored",
        timeout_minutes=generate.RESOLVE_MINUTES,
    )
    if unscored:
        sys.stderr.write(f"{unscored} of {images} images of {folder.folder} were not scored\n")
    return code


# The following functions import torch, and are called in a child process.


def _read(folder: ExternalFolder) -> "tuple[ExternalImages, ExternalAttack]":
    from pipeline.plan import external
    from pipeline.plan.recipe_fields import parse_epsilon

    epsilon = parse_epsilon(folder.epsilon, folder.norm)
    images = external.read_external_images(folder.folder, source=folder.source)
    return images, external.ExternalAttack(folder.name, epsilon, folder.norm)


def _prepare(folder: ExternalFolder, recipe: Path, store: str, limit: int | None) -> tuple[PickledPlan, Pools]:
    from pipeline.ledger import Ledger
    from pipeline.plan import external
    from pipeline.plan.recipe_reader import load_recipe
    from pipeline.plan.resolve import prepare_plan

    loaded, storage = load_recipe(recipe), Storage(store, create=True)
    images, attack = _read(folder)
    external.require_unchanged_images(images, attack, Ledger(storage))
    job = replace(loaded.job(limit=limit), sources=(images,), attacks=(attack,))
    return prepare_plan(job, storage), loaded.engine


def _unscored(folder: ExternalFolder, store: str) -> tuple[int, int]:
    """The number of the folder's images without results in the store, and the number of all."""
    from pipeline.ledger import Ledger
    from pipeline.plan import external

    images, attack = _read(folder)
    scored = external.require_unchanged_images(images, attack, Ledger(Storage(store)))
    return len(images.files) - len(scored), len(images.files)
