"""Runs `gnp curvature`: analyses a recipe's sources; prints a table, writes a figure per source and JSON."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs import strict_json
from jobs.output import save_figure
from pipeline.analysis import curvature, curvature_plot
from pipeline.attack.loop import Iterative
from pipeline.data import codec, parts, shard_list, shards
from pipeline.data.parts import Images
from pipeline.data.sample import Sample
from pipeline.errors import RecipeError, SampleError
from pipeline.models.load import load_model
from pipeline.models.spec import ModelSpec
from pipeline.plan.data_spec import DataSpec
from pipeline.plan.recipe_reader import load_recipe


def run(recipe: Path, out: Path, *, limit: int, console: Console) -> None:
    """Analyses every source that is a single model; writes figures and curvature.json to a folder.

    Raises:
        GnpError: The recipe, its shards or its weights cannot be used; or no source is a single model, or no attack
            has an L∞ budget.
    """
    job = load_recipe(recipe).job(limit=limit)
    attack = next((attack for attack in job.attacks if isinstance(attack, Iterative) and attack.norm == "linf"), None)
    specs = [spec for spec in job.sources if isinstance(spec, ModelSpec)]
    if attack is None or not specs:
        missing = "a source that is one model, no ensemble" if not specs else "an attack in an L∞ ball, for its budget"
        raise RecipeError(f"{recipe}: curvature needs {missing}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = first_images(job.data, limit)
    classes = job.data.classes
    # With and without a defense, a network would count twice.
    plain = [spec for spec in job.targets if not spec.defenses]
    targets = {spec.name: load_model(spec, classes=classes).to(device) for spec in plain}
    analyses = []
    for spec in specs:
        source = load_model(spec, classes=classes).to(device)
        others = {name: model for name, model in targets.items() if model.digest != source.digest}
        with console.status(f"{spec.name}: products"):
            products = list(curvature.product_accuracies(source, images, device=device))
        with console.status(f"{spec.name}: attacks"):
            successes = list(
                curvature.attack_successes(
                    source,
                    others,
                    images,
                    device=device,
                    epsilon=attack.epsilon,
                    steps=attack.steps,
                    batch_size=job.batch_size if isinstance(job.batch_size, int) else 32,
                )
            )
        rows = curvature.table(products, successes)
        title = f"{spec.name}, {len(images.keys)} images, ε = {attack.epsilon}, T = {attack.steps}"
        print_table(rows, title=title, console=console)
        path = out / f"curvature-{spec.name.replace('/', '-')}.png"
        save_figure(path, curvature_plot.draw(products, successes, title=title), console)
        analyses.append({"source": spec.name, "rows": rows, "reaches": [success.to_json() for success in successes]})
    report = {
        "images": len(images.keys),
        "epsilon": str(attack.epsilon),
        "steps": attack.steps,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "targets": list(targets),
        "sources": analyses,
    }
    (out / "curvature.json").write_text(strict_json.dumps(report), encoding="utf-8")


def first_images(data: DataSpec, limit: int) -> Images:
    """The first usable images of a recipe's shards, resized and cropped.

    Raises:
        RecipeError: No image is usable.
        ShardError: A shard is damaged.
    """
    kept: list[tuple[Sample, torch.Tensor]] = []
    for shard in shard_list.find_shards(data.shards):
        with shards.download_shard(shard) as spooled:
            for sample in spooled.samples(range(len(spooled)), classes=data.classes, label=data.label):
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


def print_table(rows: list[dict[str, Any]], *, title: str, console: Console) -> None:
    """Prints a row per form of the penalty, step length and precision."""
    table = Table(
        title=escape(title),
        caption="cosine and relative error to the true H·u (float64): medians over images; success over all "
        "targets except the source, on images that each classifies correctly; 95% interval, over images",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("form", "r", "precision", "cosine", "relative error", "success"):
        table.add_column(name, justify="right")
    for row in rows:
        cosine, error = ("–" if row[name] is None else f"{row[name]:.3f}" for name in ("cosine", "relative_error"))
        success = "–"
        if row["interval"] is not None:
            low, high = row["interval"]
            success = f"{row['success']:.0%} ({row['successes']}/{row['n']}) {low:.0%} … {high:.0%}"
        table.add_row(row["form"], f"{row['r']:g}", row["precision"], cosine, error, success)
    console.print(table)
