"""`gnp ablation`."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.app import Denominator, Store, app, console, folder_at, write
from pipeline.ledger import opened


@app.command()
def ablation(
    store: Store,
    attack: Annotated[str, typer.Option(help="Name of the grid: gnp+mi for gnp+mi[gnp.beta=0.4] and its like.")],
    out: Annotated[Path, typer.Option(help="Folder for the figures, one a dataset and source.")] = Path("."),
    denominator: Annotated[Denominator, typer.Option(help="Which images are counted; see `gnp report`.")] = "target",
) -> None:
    """Shows an attack over a grid of its settings: transfer and source success at each point, a table and a figure."""
    from jobs import tables
    from pipeline.analysis import ablation as grid
    from pipeline.analysis.report import summarise

    ledger, folder = opened(store), folder_at(out)
    found = grid.points(ledger, summarise(ledger), attack=attack, denominator=denominator)
    tables.show_grid(found, grid.axes(found), denominator=denominator, console=console)
    for dataset, source in dict.fromkeys((point.dataset, point.source_id) for point in found):
        some = [point for point in found if (point.dataset, point.source_id) == (dataset, source)]
        write(folder, f"ablation {attack} {source} {dataset}", grid.draw(some, denominator=denominator))
