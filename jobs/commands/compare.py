"""`gnp compare`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import Denominator, Store, app, console, folder_at, write
from pipeline.errors import MissingError
from pipeline.ledger import KINDS, opened


@app.command()
def compare(
    store: Store,
    base: Annotated[str, typer.Option(help="Name of the attack that the others are held against.")] = "mi",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON instead of tables and figures.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the figures, one a dataset and source.")] = Path("."),
    denominator: Annotated[
        Denominator,
        typer.Option(help="Which images are counted; see `gnp report`."),
    ] = "target",
) -> None:
    """Sets attacks beside a base attack on the same images: gain, its 95% interval, McNemar's p, and what each costs.

    Only attacks from the same source at the same budget are compared; of a base with several numbers of steps, each.
    On each target; on all but the source itself together; and, where there are several sources, from all of these. The
    figures have each attack beside the base that costs about as much.
    """
    from jobs import tables
    from pipeline.analysis import compare as comparing
    from pipeline.analysis import forest_plot

    ledger = opened(store)
    compared = comparing.compare(ledger, base=base, denominator=denominator)
    if as_json:
        sys.stdout.write(json.dumps(comparing.to_json(compared), indent=1) + "\n")
    elif not compared.each:
        raise MissingError(f"{store}: no attack here can be set beside {base!r}; gnp report names the attacks")
    else:
        folder = folder_at(out)
        tables.show_comparisons(compared, denominator=denominator, console=console)
        grouped: dict[tuple[str, str], list[comparing.Together]] = {}
        for row in compared.together:
            grouped.setdefault((row.dataset, row.ids[0] or "every source"), []).append(row)
        for (dataset, source), rows in grouped.items():
            write(
                folder, f"compare {base} {source} {dataset}", forest_plot.draw(rows, base=base, denominator=denominator)
            )
        tables.show_missing(ledger.missing({unit for kind in KINDS for unit in ledger.units(kind)}), console=console)
