"""`gnp verify`."""

import sys
from typing import Annotated

import typer

from jobs.app import Store, app
from pipeline.ledger import opened


@app.command()
def verify(
    store: Store,
    sample: Annotated[
        float, typer.Option(min=1e-9, max=1, help="The share of the parts to re-read; completeness is checked of all.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Which share.")] = 0,
) -> None:
    """Audits what is stored: re-reads every object and checks hashes, counts, ε on the stored pixels, completeness.

    Exit code: 0, everything is sound; 1, something is wrong.
    """
    from pipeline.maintenance.verify import audit

    found = audit(opened(store), fraction=sample, seed=seed)
    for problem in found.problems:
        sys.stdout.write(f"{problem.where}: {problem.what}\n")
    count = len(found.problems)
    verdict = f"{count} problem{'s' * (count > 1)}" if count else "all sound"
    parts = "" if found.parts == found.of_parts else f" in {found.parts} of {found.of_parts} parts"
    sys.stdout.write(f"{found.objects} objects re-read{parts}, {found.images} adversarial images measured: {verdict}\n")
    raise typer.Exit(1 if found.problems else 0)
