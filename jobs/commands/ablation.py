"""`gnp ablation`: success of an attack at each point of a grid of its settings."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.app import DenominatorOption, Figures, Store, app, console, create_folder, write_figure
from pipeline.ledger import open_ledger


@app.command()
def ablation(
    store: Store,
    attack: Annotated[
        str, typer.Option(help="Name of the attack without its settings: gnp+mi for gnp+mi[gnp.beta=0.4] and others.")
    ],
    out: Figures = Path("."),
    denominator: DenominatorOption = "target",
) -> None:
    """Prints and plots success on the source and transfer to targets, over a grid of an attack's settings."""
    from jobs import tables
    from pipeline.analysis import ablation as grid
    from pipeline.analysis import ablation_plot
    from pipeline.analysis.report import summarise

    ledger, folder = open_ledger(store), create_folder(out)
    points = grid.grid_points(ledger, summarise(ledger), attack=attack, denominator=denominator)
    tables.print_grid(points, grid.varying_settings(points), denominator=denominator, console=console)
    for dataset, source in dict.fromkeys((point.dataset, point.source_id) for point in points):
        chosen = [point for point in points if (point.dataset, point.source_id) == (dataset, source)]
        write_figure(
            folder, f"ablation {attack} {source} {dataset}", ablation_plot.draw(chosen, denominator=denominator)
        )
