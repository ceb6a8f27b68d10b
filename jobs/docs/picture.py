"""`make picture`: docs/picture.png, from the demo's recipe on a public-domain photograph.

The photograph is scikit-image's `coffee.png`, by Rachel Michetti, CC0.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from jobs.demo import FOLDER, RECIPE, assets
from pipeline import engine
from pipeline.analysis import drawing, picture, sample_view
from pipeline.analysis.report import summarise
from pipeline.ledger import Ledger
from pipeline.models.class_names import class_name
from pipeline.packing.pack import pack
from pipeline.plan.recipe_reader import load_recipe
from pipeline.plan.resolve import prepare_plan
from pipeline.storage import Storage

ESPRESSO = 967  # class index in ImageNet
OUT = Path("docs/picture.png")


def main() -> None:
    """Attacks the photograph and draws the result of the strongest attack."""
    assets.prepare(FOLDER)
    folder = Path("build/picture")
    shutil.rmtree(folder, ignore_errors=True)
    assets.end_download(assets.begin_download(folder / "packages", "scikit-image==0.26.0"))
    ((_, data),) = assets.members(folder / "packages", "scikit_image-*", r"skimage/data/coffee\.png$")
    photographs = folder / "photographs"
    photographs.mkdir(exist_ok=True)
    (photographs / "coffee.png").write_bytes(data)
    (photographs / "labels.csv").write_text(f"filename,label\ncoffee.png,{ESPRESSO}\n", encoding="utf-8")
    pack(photographs, str(folder / "shards"), name="free", per_shard=1)
    recipe = load_recipe(RECIPE)
    job = recipe.job()
    store = Storage(str(folder / "store"), create=True)
    free = replace(job.data, name="free", shards=(f"{folder}/shards/*.tar",))
    outcome = engine.run_plan(prepare_plan(replace(job, data=free), store), store.url, pools=recipe.engine)
    if outcome.failed:
        sys.exit(f"error: {outcome.failed}")
    ledger = Ledger(store)
    OUT.parent.mkdir(exist_ok=True)
    sample = sample_view.best_sample(ledger, sample_view.strongest_attack(summarise(ledger)))
    figure = picture.draw(sample, *sample_view.read_images(ledger, sample), class_name=class_name)
    OUT.write_bytes(drawing.png(figure))
    sys.stdout.write(f"{OUT}\n")


if __name__ == "__main__":
    main()
