"""`gnp compare`: gains of attacks over a base attack on the same images, with intervals and p-values."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import DenominatorOption, Figures, Store, app, console, create_folder, write_figure
from pipeline.errors import MissingError
from pipeline.ledger import UNIT_KINDS, open_ledger


@app.command()
def compare(
    store: Store,
    base: Annotated[str, typer.Option(help="Name of the attack that the others are compared with.")] = "mi",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables and figures.")] = False,
    out: Figures = Path("."),
    denominator: DenominatorOption = "target",
) -> None:
    """Compares attacks with a base attack on the same images: gain, 95% interval, McNemar's p, and cost in gradients.

    Only attacks on the same source with the same budget are compared; a base with several numbers of steps is compared
    with each. Gains are given per target; over all targets except the source; and, with several sources, over all of
    them. The figures show each attack beside the base of about the same cost.
    """
    from jobs import tables
    from pipeline.analysis import compare as comparing
    from pipeline.analysis import forest_plot
    from pipeline.analysis.json_values import comparison_values
    from pipeline.analysis.paired_statistics import PooledComparison

    ledger = open_ledger(store)
    compared = comparing.compare(ledger, base=base, denominator=denominator)
    if as_json:
        sys.stdout.write(json.dumps(comparison_values(compared), indent=1) + "\n")
    elif not compared.by_target:
        raise MissingError(f"{store}: no attack can be compared with {base!r}; gnp report lists the attacks")
    else:
        folder = create_folder(out)
        tables.print_comparisons(compared, denominator=denominator, console=console)
        grouped: dict[tuple[str, str], list[PooledComparison]] = {}
        for row in compared.pooled:
            grouped.setdefault((row.dataset, row.ids[0] or "every source"), []).append(row)
        for (dataset, source), rows in grouped.items():
            write_figure(
                folder, f"compare {base} {source} {dataset}", forest_plot.draw(rows, base=base, denominator=denominator)
            )
        tables.print_missing(
            ledger.count_missing({unit for kind in UNIT_KINDS for unit in ledger.list_units(kind)}), console=console
        )
