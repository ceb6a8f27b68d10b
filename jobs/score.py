"""Adversarial images that another program made: scored on a recipe's targets, into the same store and reports."""

import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from rich.console import Console

from jobs import generate
from pipeline import config, foreign
from pipeline.attack.ball import BallNorm
from pipeline.foreign import ForeignAttack
from pipeline.ledger import Ledger
from pipeline.plan import Job
from pipeline.storage import Storage


def run(
    folder: str,
    recipe: Path,
    store: str,
    *,
    name: str,
    source: str,
    epsilon: Fraction,
    norm: BallNorm,
    console: Console,
    limit: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
) -> int:
    """Scores a folder; returns the exit code, as `generate.run` does.

    Raises:
        GnpError: The run could not start, or could not go on.
    """
    loaded = config.load(recipe)
    images, attack = foreign.read(folder, source=source), ForeignAttack(name, epsilon, norm)
    ledger = Ledger(Storage(store, create=True))
    foreign.require_unchanged(images, attack, ledger)

    def job() -> Job:
        return replace(loaded.job(limit=limit), sources=(images,), attacks=(attack,))

    code = generate.carry_out(
        job, store, pools=loaded.engine, console=console, address=address, retry_failed=retry_failed
    )
    left = len(images.files) - len(foreign.require_unchanged(images, attack, ledger))
    if left > 0:
        sys.stderr.write(f"{left} of {len(images.files)} images of {folder} are not among the scored\n")
    return code
