"""`gnp report`: success rates of a store as tables, JSON, CSV or a web page."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.app import Denominator, Store, app, console, create_folder
from pipeline.errors import RecipeError
from pipeline.ledger import open_ledger


@app.command()
def report(
    store: Store,
    html: Annotated[
        Path | None, typer.Option(help="Write a self-contained web page to index.html in this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every rate under every denominator as JSON.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a line of CSV per rate: of each target, and of all others.")
    ] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print the table as LaTeX (booktabs).")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    denominator: Annotated[
        Denominator,
        typer.Option(
            help="Images that are counted: all; those that the target classifies correctly when clean; or those that "
            "every target classifies correctly (as in the paper's line of work)."
        ),
    ] = "target",
    base: Annotated[str, typer.Option(help="On the page: the attack that gains are measured against.")] = "mi",
) -> None:
    """Shows success rates by source, target and attack, with denominators and 95% intervals.

    The page (`--html FOLDER`) has the rates as a heat map to filter and sort, gains with intervals and p-values, curves
    over ε and steps, grids of settings, success by class, sizes of perturbations, confusions of classes, samples,
    quarantined images and failures, and provenance. It works offline.
    """
    from jobs import formats, tables
    from pipeline.analysis.json_values import report_values
    from pipeline.analysis.report import summarise

    if sum((html is not None, as_json, as_csv, as_latex, as_markdown)) > 1:
        raise RecipeError("gnp report: --html, --json, --csv, --latex and --markdown exclude each other; give one")
    ledger = open_ledger(store)
    if html is not None:
        from pipeline.analysis import page

        path = create_folder(html, "--html") / "index.html"
        path.write_text(page.render(ledger, store=store, base=base, denominator=denominator), encoding="utf-8")
        sys.stdout.write(f"{path}\n")
        return
    summary = summarise(ledger)
    if as_json:
        sys.stdout.write(json.dumps(report_values(summary), indent=1) + "\n")
    elif as_csv:
        sys.stdout.write(formats.report_csv(summary))
    elif as_latex or as_markdown:
        sys.stdout.write(formats.report_table(summary, denominator=denominator, latex=as_latex))
    else:
        tables.print_report(summary, denominator=denominator, console=console)
