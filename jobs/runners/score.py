"""Adversarial images that another program made: scored on a recipe's targets, into the same store and reports."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from jobs.runners import generate
from pipeline.child_process import isolated
from pipeline.plan.outline import Prepared
from pipeline.plan.pools import Pools
from pipeline.storage import Storage

if TYPE_CHECKING:
    from pipeline.plan.external import Foreign, ForeignAttack


@dataclass(frozen=True)
class Told:
    """What the user says of a folder.

    Attributes:
        folder: A folder or `s3://` URL of adversarial images.
        name: What results call the attack.
        source: What results call the model that was attacked.
        epsilon: The budget that they were made with, as recipes write it.
        norm: Of the budget.
    """

    folder: str
    name: str
    source: str = "unknown"
    epsilon: str = "16/255"
    norm: Literal["linf", "l2"] = "linf"


def run(
    told: Told,
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
        GnpError: The run could not start, or could not go on.
    """
    code = generate.carry_out(
        partial(_prepare, told, recipe, store, limit),
        store,
        console=console,
        address=address,
        retry_failed=retry_failed,
    )
    left, images = isolated(
        partial(_left_out, told, store), what="looking for what was not scored", minutes=generate.RESOLVE_MINUTES
    )
    if left:
        sys.stderr.write(f"{left} of {images} images of {told.folder} are not among the scored\n")
    return code


# The following take torch, and are called in a process of their own.


def _read(told: Told) -> "tuple[Foreign, ForeignAttack]":
    from pipeline.plan import external
    from pipeline.plan import recipe as config

    budget = config.budget(told.epsilon, told.norm)
    return external.read(told.folder, source=told.source), external.ForeignAttack(told.name, budget, told.norm)


def _prepare(told: Told, recipe: Path, store: str, limit: int | None) -> tuple[Prepared, Pools]:
    from pipeline.ledger import Ledger
    from pipeline.plan import external, resolve
    from pipeline.plan import recipe as config

    loaded, storage = config.load(recipe), Storage(store, create=True)
    images, attack = _read(told)
    external.require_unchanged(images, attack, Ledger(storage))
    job = replace(loaded.job(limit=limit), sources=(images,), attacks=(attack,))
    return resolve.prepare(job, storage), loaded.engine


def _left_out(told: Told, store: str) -> tuple[int, int]:
    """How many of the folder's images the store holds nothing of, and how many there are."""
    from pipeline.ledger import Ledger
    from pipeline.plan import external

    images, attack = _read(told)
    held = external.require_unchanged(images, attack, Ledger(Storage(store)))
    return len(images.files) - len(held), len(images.files)
