"""`gnp report`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import Denominator, Store, app, console, folder_at
from pipeline.errors import RecipeError
from pipeline.ledger import opened


@app.command()
def report(
    store: Store,
    html: Annotated[
        Path | None, typer.Option(help="Write a page, whole in itself, to index.html in this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every rate under every denominator, for programs.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Each target's rates, and all others', a line a rate.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="The table, for a paper (booktabs).")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The table, for a README.")] = False,
    denominator: Annotated[
        Denominator,
        typer.Option(
            help="Success among all images; among those that the target classifies correctly when clean; or among "
            "those that every target does (the paper's lineage)."
        ),
    ] = "target",
    base: Annotated[str, typer.Option(help="On the page: the attack that gains are over.")] = "mi",
) -> None:
    """Shows success rates, source × target × attack, with denominators and 95% intervals.

    The page (`--html FOLDER`) has them as a heat map to filter and sort, and beside them gains with intervals and p,
    curves over ε and steps, grids of settings, success by class, how far images are moved, what right answers turn
    into, samples, what was quarantined or failed, and what made it all. It needs no network.
    """
    from jobs import formats, tables
    from pipeline.analysis.report import summarise, to_json

    if sum((html is not None, as_json, as_csv, as_latex, as_markdown)) > 1:
        raise RecipeError("gnp report: --html, --json, --csv, --latex and --markdown exclude each other; give one")
    ledger = opened(store)
    if html is not None:
        from pipeline.analysis import page

        path = folder_at(html, "--html") / "index.html"
        path.write_text(page.render(ledger, store=store, base=base, denominator=denominator), encoding="utf-8")
        sys.stdout.write(f"{path}\n")
        return
    summary = summarise(ledger)
    if as_json:
        sys.stdout.write(json.dumps(to_json(summary), indent=1) + "\n")
    elif as_csv:
        sys.stdout.write(formats.csv_of(summary))
    elif as_latex or as_markdown:
        sys.stdout.write(formats.table(summary, denominator=denominator, latex=as_latex))
    else:
        tables.show(summary, denominator=denominator, console=console)
