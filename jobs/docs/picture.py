"""`make picture`: the README's picture, by the demo's recipe on a photograph that is free of rights.

scikit-image ships it: `coffee.png`, by Rachel Michetti, CC0.
"""

import sys
from dataclasses import replace
from pathlib import Path

from jobs.demo import FOLDER, RECIPE, assets
from pipeline import engine
from pipeline.analysis import drawing, picture
from pipeline.analysis.report import summarise
from pipeline.data import pack
from pipeline.ledger import Ledger
from pipeline.models import load
from pipeline.plan import recipe as config
from pipeline.plan import resolve
from pipeline.storage import Storage

ESPRESSO = 967  # ImageNet's class
OUT = Path("docs/picture.png")


def main() -> None:
    """Attacks the photograph and draws the strongest attack's result."""
    assets.prepare(FOLDER)
    folder = Path("build/picture")
    assets.download(folder / "packages", "scikit-image==0.26.0")
    ((_, data),) = assets.members(folder / "packages", "scikit_image-*", r"skimage/data/coffee\.png$")
    photographs = folder / "photographs"
    photographs.mkdir(exist_ok=True)
    (photographs / "coffee.png").write_bytes(data)
    (photographs / "labels.csv").write_text(f"filename,label\ncoffee.png,{ESPRESSO}\n", encoding="utf-8")
    pack.from_folder(photographs, str(folder / "shards"), name="free", per_shard=1)
    recipe = config.load(RECIPE)
    job = recipe.job()
    store = Storage(str(folder / "store"), create=True)
    free = replace(job.data, name="free", shards=(f"{folder}/shards/*.tar",))
    outcome = engine.run(resolve.prepare(replace(job, data=free), store), store.url, pools=recipe.engine)
    if outcome.failed:
        sys.exit(f"error: {outcome.failed}")
    ledger = Ledger(store)
    OUT.parent.mkdir(exist_ok=True)
    said = picture.best(ledger, picture.strongest(summarise(ledger)))
    figure = picture.draw(said, *picture.images(ledger, said), class_name=load.class_name)
    OUT.write_bytes(drawing.png(figure))
    sys.stdout.write(f"{OUT}\n")


if __name__ == "__main__":
    main()
