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
from pipeline.ledger import Ledger, named
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
    images, digest = foreign.read(folder, source=source)
    attack = ForeignAttack(name, epsilon, norm, digest)

    def job() -> Job:
        return replace(loaded.job(limit=limit), sources=(images,), attacks=(attack,))

    code = generate.carry_out(
        job, store, pools=loaded.engine, console=console, address=address, retry_failed=retry_failed
    )
    ledger = Ledger(Storage(store))
    mine = [unit for unit in ledger.units("adversarial") if unit.attack == named(name, attack.provenance())]
    scored = sum(int(marker.fact("n")) for marker in ledger.markers(mine))
    if scored < len(images.files):
        sys.stderr.write(
            f"{len(images.files) - scored} of {len(images.files)} images of {folder} are not among the scored\n"
        )
    return code
