"""`make demo`: `gnp generate` on real photographs and weights, then the report as a table and a page, and a picture."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from jobs import tables
from jobs.demo import FOLDER, RECIPE, assets
from jobs.exit_codes import run_and_exit
from jobs.runners import generate
from pipeline.analysis import drawing, page, picture, sample_view
from pipeline.analysis.report import summarise
from pipeline.ledger import Ledger
from pipeline.models.class_names import class_name
from pipeline.storage import Storage


def main() -> int:
    """Runs the demo; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default=str(FOLDER / "store"), help="store for the results")
    store = parser.parse_args().store
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print("[bold]1[/bold]  real weights and photographs from Python packages")
    assets.prepare(FOLDER)
    console.print(f"[bold]2[/bold]  gnp generate {RECIPE.relative_to(Path.cwd())} --store {store}")
    code = generate.run(RECIPE, store, console=console)
    if code:
        return code
    console.print(f"[bold]3[/bold]  gnp report {store}")
    ledger = Ledger(Storage(store))
    report = summarise(ledger)
    tables.print_report(report, denominator="target", console=console)
    sample = sample_view.best_sample(ledger, sample_view.strongest_attack(report))
    path = FOLDER / "picture.png"
    path.write_bytes(drawing.png(picture.draw(sample, *sample_view.read_images(ledger, sample), class_name=class_name)))
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
    run_and_exit(main)
