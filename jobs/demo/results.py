"""What the demo shows of its results."""

from rich.console import Console

from jobs import tables
from jobs.demo import FOLDER
from pipeline.analysis import drawing, page, picture, sample_view
from pipeline.analysis.report import summarise
from pipeline.ledger import Ledger
from pipeline.models.class_names import class_name
from pipeline.storage import Storage


def show(store: str, console: Console) -> None:
    """Prints the table of success rates, writes a picture and the page, and prints where everything is."""
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
