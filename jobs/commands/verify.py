"""`gnp verify`: audits the objects of a store."""

import sys
from typing import Annotated

import typer

from jobs.app import Store, app
from pipeline.ledger import open_ledger


@app.command()
def verify(
    store: Store,
    sample: Annotated[
        float, typer.Option(min=1e-9, max=1, help="Share of the parts to re-read; completeness is checked for all.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed that selects the share.")] = 0,
) -> None:
    """Audits a store: re-reads every object and checks hashes, counts, ε on the stored pixels, and completeness.

    Exit code: 0, everything is sound; 1, there are problems.
    """
    from pipeline.maintenance.verify import audit

    result = audit(open_ledger(store), fraction=sample, seed=seed)
    for problem in result.problems:
        sys.stdout.write(f"{problem.address}: {problem.message}\n")
    count = len(result.problems)
    verdict = f"{count} problem{'s' * (count > 1)}" if count else "all sound"
    parts = "" if result.parts == result.total_parts else f" in {result.parts} of {result.total_parts} parts"
    sys.stdout.write(
        f"{result.objects} objects re-read{parts}, {result.images} adversarial images measured: {verdict}\n"
    )
    raise typer.Exit(1 if result.problems else 0)
