"""The curvature analysis of a recipe's sources: a table, a picture and JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs import strict_json
from pipeline.analysis import curvature, drawing
from pipeline.attack.loop import Iterative
from pipeline.data import codec, parts, shards
from pipeline.data.parts import Images
from pipeline.data.sample import Sample
from pipeline.errors import RecipeError, SampleError
from pipeline.models import load
from pipeline.models.load import ModelSpec
from pipeline.plan import recipe as config
from pipeline.plan.resolve import DataSpec


def run(recipe: Path, out: Path, *, limit: int, console: Console) -> None:
    """Analyses each source that is a single model; writes to a folder.

    Raises:
        GnpError: The recipe, its shards or its weights cannot be used; or no source is a single model, or no attack
            has an L∞ budget.
    """
    loaded = config.load(recipe)
    job = loaded.job(limit=limit)
    attack = next((each for each in job.attacks if isinstance(each, Iterative) and each.norm == "linf"), None)
    specs = [spec for spec in job.sources if isinstance(spec, ModelSpec)]
    if attack is None or not specs:
        wanted = "an attack in an L∞ ball, for its budget" if specs else "a source that is one model, no ensemble"
        raise RecipeError(f"{recipe}: curvature needs {wanted}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, classes = first_images(job.data, limit), job.data.classes
    # Behind a defense a network would count twice.
    plain = [spec for spec in job.targets if not spec.defenses]
    targets = {spec.name: load.load(spec, classes=classes).to(device) for spec in plain}
    told = []
    for spec in specs:
        source = load.load(spec, classes=classes).to(device)
        others = {name: model for name, model in targets.items() if model.digest != source.digest}
        with console.status(f"{spec.name}: products"):
            found = list(curvature.likenesses(source, images, device=device))
        with console.status(f"{spec.name}: attacks"):
            reached = list(
                curvature.reaches(
                    source,
                    others,
                    images,
                    device=device,
                    epsilon=attack.epsilon,
                    steps=attack.steps,
                    batch_size=32 if job.batch_size == "auto" else job.batch_size,
                )
            )
        rows = curvature.table(found, reached)
        said = f"{spec.name}, {len(images.keys)} images, ε = {attack.epsilon}, T = {attack.steps}"
        show(rows, title=said, console=console)
        path = out / f"curvature-{spec.name.replace('/', '-')}.png"
        path.write_bytes(drawing.png(curvature.draw(found, reached, title=said)))
        console.print(path, highlight=False)
        told.append({"source": spec.name, "rows": rows, "reaches": [asdict(reach) for reach in reached]})
    about = {
        "images": len(images.keys),
        "epsilon": str(attack.epsilon),
        "steps": attack.steps,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "targets": list(targets),
        "sources": told,
    }
    (out / "curvature.json").write_text(strict_json.dumps(about))


def first_images(data: DataSpec, limit: int) -> Images:
    """The first usable images of a recipe's shards, prepared.

    Raises:
        RecipeError: There is none.
        ShardError: A shard is damaged.
    """
    kept: list[tuple[Sample, torch.Tensor]] = []
    for shard in shards.find(data.shards):
        with shards.spool(shard) as spooled:
            for sample in spooled.samples(range(len(spooled)), classes=data.classes):
                if not isinstance(sample, Sample) or len(kept) == limit:
                    continue
                try:
                    kept.append((sample, codec.decode(sample.image, data.preparation)))
                except SampleError:
                    continue
        if len(kept) == limit:
            break
    if not kept:
        raise RecipeError(f"{data.shards[0]}: no usable image")
    return parts.stack([sample for sample, _ in kept], [pixels for _, pixels in kept])


def show(rows: list[dict[str, Any]], *, title: str, console: Console) -> None:
    """Prints a line for each form, length and precision."""
    table = Table(
        title=escape(title),
        caption="cosine and relative error to the true H·u (float64): medians over images; success over all "
        "targets but the source, of images that each classifies correctly; 95% interval, over images",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("form", "r", "precision", "cosine", "relative error", "success"):
        table.add_column(name, justify="right")
    for row in rows:
        cosine, error = ("–" if row[name] is None else f"{row[name]:.3f}" for name in ("cosine", "relative_error"))
        reached = "–"
        if row["interval"] is not None:
            low, high = row["interval"]
            reached = f"{row['success']:.0%} ({row['successes']}/{row['n']}) {low:.0%} … {high:.0%}"
        table.add_row(row["form"], f"{row['r']:g}", row["precision"], cosine, error, reached)
    console.print(table)
