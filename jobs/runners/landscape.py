"""Runs `gnp landscape`: measures the loss around stored adversarial images; prints tables, writes figures and JSON."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs import strict_json
from jobs.output import print_line, save_figure
from pipeline.analysis import landscape, landscape_plot
from pipeline.analysis.landscape import LossLandscape
from pipeline.data import parts
from pipeline.errors import MissingError, RecipeError
from pipeline.ledger import Ledger, Unit
from pipeline.models import registry
from pipeline.models.registry import ResolvedModel
from pipeline.plan.recipe_reader import load_recipe
from pipeline.plan.resolve import Plan, resolve_job


def run(recipe: Path, ledger: Ledger, out: Path, *, names: list[str], limit: int, console: Console) -> None:
    """Measures the loss around a recipe's stored adversarial images; writes figures and landscape.json to a folder.

    Args:
        recipe: Recipe of the run that filled the store.
        ledger: Ledger of the store.
        out: Folder.
        names: Names of attacks; if empty, all of the recipe.
        limit: Number of images per attack, the first ones.
        console: Console for the tables.

    Raises:
        RecipeError: The recipe has no attack of such a name, or no source that is a single model.
        MissingError: The store holds no images of these attacks.
    """
    storage = ledger.storage
    planned = resolve_job(load_recipe(recipe).job(), storage)
    attacks = {attack.name: identity for identity, attack in planned.attacks.items()}
    unknown = [name for name in names if name not in attacks]
    if unknown:
        raise RecipeError(f"attack {unknown[0]!r}: the recipe has {', '.join(attacks)}")
    chosen = {name: attacks[name] for name in names or attacks}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = planned.job.data.classes
    # Gradients through a defense are zero or useless.
    plain = [model for model in planned.targets if "defenses" not in model.identity]
    targets = {
        model.spec.name: (model, registry.load_resolved(model, storage, classes=classes, device=device))
        for model in plain
    }
    # The loss of an ensemble is not the loss of one model.
    sources = [source for source in planned.sources if isinstance(source, ResolvedModel)]
    if not sources:
        raise RecipeError(f"{recipe}: landscape needs a source that is one model, no ensemble")
    analyses = []
    for source in sources:
        name = source.spec.name
        attacked = registry.load_resolved(source, storage, classes=classes, device=device)
        others = {name: network for name, (model, network) in targets.items() if model.digest != source.digest}
        images = {attack: _images(planned, ledger, source.id, chosen[attack], limit) for attack in chosen}
        landscapes: list[LossLandscape] = []
        for attack, pair in _complete(images, source=name, console=console).items():
            with console.status(f"{name}: {attack}"):
                landscapes += landscape.measure(attack, *pair, attacked, {name: attacked} | others, device=device)
        if not landscapes:
            raise MissingError(
                f"{storage.url}: no images of these attacks from {name}; run gnp generate first, without --limit, "
                "which makes another dataset (data.limit in the recipe serves both)"
            )
        rows = landscape.table(landscapes)
        ranks = landscape.correlations(landscapes, source=name)
        title = f"{name}, {len(landscapes[0].fooled)} images"
        print_tables(rows, ranks, title=title, console=console)
        figure = landscape_plot.draw(landscapes, title=f"median loss around the images made on {title}")
        save_figure(out / f"landscape-{name.replace('/', '-')}.png", figure, console)
        analyses.append({"source": name, "rows": rows, "correlations": ranks})
    text = strict_json.dumps({"store": storage.url, "sources": analyses})
    (out / "landscape.json").write_text(text, encoding="utf-8")


# The originals of some images, and the adversarial images.
ImagePair = tuple[parts.Images, parts.Images]


def _complete(images: dict[str, ImagePair | None], *, source: str, console: Console) -> dict[str, ImagePair]:
    """The attacks that have as many images as any other; prints the names of those that are left out."""
    largest = max((pair for pair in images.values() if pair), key=lambda pair: len(pair[1].keys), default=None)
    complete = {}
    for attack, pair in images.items():
        if pair is None or largest is None or pair[1].keys != largest[1].keys:
            print_line(console, f"{source}: {attack}: left out, since some of its images are missing")
        else:
            complete[attack] = pair
    return complete


def _images(planned: Plan, ledger: Ledger, source_id: str, attack_id: str, limit: int) -> ImagePair | None:
    """The first images of an attack, with their originals; None where the store has none."""
    originals: list[parts.Images] = []
    adversarial: list[parts.Images] = []
    for unit in sorted(ledger.list_units("adversarial")):
        if (unit.dataset, unit.source, unit.attack) != (planned.dataset, source_id, attack_id):
            continue
        if sum(len(images.keys) for images in adversarial) >= limit:
            break
        originals.append(_read(ledger, replace(unit, source="", attack="")))
        adversarial.append(_read(ledger, unit))
    return (_first(limit, originals), _first(limit, adversarial)) if originals else None


def _read(ledger: Ledger, unit: Unit) -> parts.Images:
    marker = ledger.read_marker(unit)
    return parts.decode_tar(ledger.read_data(marker), name=marker.object)


def _first(limit: int, read: list[parts.Images]) -> parts.Images:
    """The first `limit` images of several parts, as one part."""
    return parts.Images(
        keys=tuple(key for images in read for key in images.keys)[:limit],
        labels=torch.cat([images.labels for images in read])[:limit],
        pixels=torch.cat([images.pixels for images in read])[:limit],
        target_classes=torch.cat([images.target_classes for images in read])[:limit],
    )


def print_tables(rows: list[dict[str, Any]], ranks: list[dict[str, Any]], *, title: str, console: Console) -> None:
    """Prints the medians per attack and model, and the rank correlations."""
    table = Table(
        title=escape(title),
        caption="medians at the adversarial image, over images that the model classifies correctly when clean: ‖∇ℓ‖₂; "
        f"the largest change of the loss at an L2 distance of {landscape.SHARPNESS_RADIUS:g}, in "
        f"{landscape.SHARPNESS_DIRECTIONS} directions; and the multiple of the perturbation at which the true class is "
        "lost (inf: not even at twice the perturbation)",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("attack", "model", "slope", "sharpness", "boundary", "errs on"):
        table.add_column(name, justify="left" if name in ("attack", "model") else "right", overflow="fold")
    for row in rows:
        numbers = (f"{row[name]:.3g}" for name in ("slope", "sharpness", "boundary"))
        table.add_row(escape(row["attack"]), escape(row["model"]), *numbers, f"{row['fooled']}/{row['n']}")
    console.print(table)
    correlations = Table(
        title="rank correlations of flatness on the source with flatness and success on the target",
        caption="over images that the target classifies correctly when clean: ρ over images and attacks together; ρ "
        "among the attacks on one image, which is what an attack can change; and p, the chance of a value as far from "
        "0 on other such images. p does not cover other attacks",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("on the source", "target", "on the target", "ρ", "ρ within images", "p", "images × attacks"):
        correlations.add_column(name)
    for rank in ranks:
        values = (f"{rank['rho']:+.2f}", f"{rank['rho_within']:+.2f}", f"{rank['p_within']:.2g}")
        size = f"{rank['images']} × {rank['attacks']}"
        correlations.add_row(rank["on_the_source"], escape(rank["target"]), rank["on_the_target"], *values, size)
    console.print(correlations)
