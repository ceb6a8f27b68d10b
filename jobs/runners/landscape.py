"""The loss around stored adversarial images: a table, ranks, a picture a source, and JSON."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs import strict_json
from pipeline.analysis import drawing, landscape
from pipeline.analysis.landscape import Ground
from pipeline.data import parts
from pipeline.errors import MissingError, RecipeError
from pipeline.ledger import Ledger, Unit
from pipeline.models import registry
from pipeline.models.registry import Model
from pipeline.plan import recipe as config
from pipeline.plan import resolve
from pipeline.plan.resolve import Plan


def run(recipe: Path, ledger: Ledger, out: Path, *, names: list[str], limit: int, console: Console) -> None:
    """Surveys the images that a recipe's attacks have made in a store, source by source; writes to a folder.

    Args:
        recipe: What the store was filled by.
        ledger: The store where the images lie.
        out: Folder.
        names: Of attacks; all, if none are named.
        limit: Images of each attack, the first.
        console: Where tables go.

    Raises:
        RecipeError: The recipe names no such attack.
        MissingError: The store holds none of their images.
    """
    storage, planned = ledger.storage, resolve.resolve(config.load(recipe).job(), ledger.storage)
    known = {attack.name: identity for identity, attack in planned.attacks.items()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise RecipeError(f"attack {unknown[0]!r}: the recipe has {', '.join(known)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = planned.job.data.classes
    # Through a defense there is no gradient to speak of.
    plain = [model for model in planned.targets if "defenses" not in model.identity]
    targets = {
        model.spec.name: (model, registry.load(model, storage, classes=classes, device=device)) for model in plain
    }
    told = []
    # An ensemble's loss is that of no one model.
    single = [source for source in planned.sources if isinstance(source, Model)]
    if not single:
        raise RecipeError(f"{recipe}: landscape needs a source that is one model, no ensemble")
    for source in single:
        attacked = registry.load(source, storage, classes=classes, device=device)
        others = {name: network for name, (model, network) in targets.items() if model.digest != source.digest}
        models = {source.spec.name: attacked} | others
        ground: list[Ground] = []
        made = {name: _images(planned, ledger, source.id, known[name], limit) for name in names or known}
        most = max((images for images in made.values() if images), key=lambda pair: len(pair[1].keys), default=None)
        for name, images in made.items():
            if images is None or most is None or images[1].keys != most[1].keys:
                console.print(f"{source.spec.name}: {name}: its images are not all made; left out", markup=False)
                continue
            with console.status(f"{source.spec.name}: {name}"):
                ground += landscape.survey(name, *images, attacked, models, device=device)
        if not ground:
            raise MissingError(
                f"{storage.url}: no images of these attacks from {source.spec.name}; run generate first, but not by "
                "--limit, which makes other data (data.limit in the recipe serves both)"
            )
        rows, ranks = landscape.table(ground), landscape.correlations(ground, source=source.spec.name)
        title = f"{source.spec.name}, {len(ground[0].fooled)} images"
        show(rows, ranks, title=title, console=console)
        path = out / f"landscape-{source.spec.name.replace('/', '-')}.png"
        path.write_bytes(drawing.png(landscape.draw(ground, title=f"median loss around the images made on {title}")))
        console.print(path, highlight=False)
        told.append({"source": source.spec.name, "rows": rows, "correlations": ranks})
    (out / "landscape.json").write_text(strict_json.dumps({"store": storage.url, "sources": told}))


def _images(
    planned: Plan, ledger: Ledger, source: str, attack: str, limit: int
) -> tuple[parts.Images, parts.Images] | None:
    """Originals of the first images of an attack, and these; None where it has made none."""
    found: list[tuple[parts.Images, parts.Images]] = []
    units = (unit for unit in sorted(ledger.units("adversarial")) if unit.dataset == planned.dataset)
    for unit in (each for each in units if (each.source, each.attack) == (source, attack)):
        if sum(len(adversarial.keys) for _, adversarial in found) >= limit:
            break
        original = _read(ledger, replace(unit, source="", attack=""))
        found.append((original, _read(ledger, unit)))
    return (_first(limit, [pair[0] for pair in found]), _first(limit, [pair[1] for pair in found])) if found else None


def _read(ledger: Ledger, unit: Unit) -> parts.Images:
    marker = ledger.marker(unit)
    return parts.read(ledger.read(marker), name=marker.object)


def _first(limit: int, some: list[parts.Images]) -> parts.Images:
    """The first so many of several parts' images, as one part."""
    return parts.Images(
        keys=tuple(key for images in some for key in images.keys)[:limit],
        labels=torch.cat([images.labels for images in some])[:limit],
        pixels=torch.cat([images.pixels for images in some])[:limit],
        target_classes=torch.cat([images.target_classes for images in some])[:limit],
    )


def show(rows: list[dict[str, Any]], ranks: list[dict[str, Any]], *, title: str, console: Console) -> None:
    """Prints the medians of each attack and model, and the rank correlations."""
    table = Table(
        title=escape(title),
        caption="medians at the adversarial image, over images that the model classifies correctly when clean: ‖∇ℓ‖₂; "
        f"the largest change of the loss at an L2 of {landscape.REACH:g}, in {landscape.DIRECTIONS} directions; and "
        "the share of the perturbation at which the true class is lost (inf: not at twice of it)",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("attack", "model", "slope", "sharpness", "boundary", "errs on"):
        table.add_column(name, justify="left" if name in ("attack", "model") else "right", overflow="fold")
    for row in rows:
        numbers = (f"{row[name]:.3g}" for name in ("slope", "sharpness", "boundary"))
        table.add_row(escape(row["attack"]), escape(row["model"]), *numbers, f"{row['fooled']}/{row['n']}")
    console.print(table)
    ranked = Table(
        title="does flatness on the source go with what happens on the target? (rank correlations)",
        caption="over images that the target classifies correctly when clean: ρ of images and attacks together; ρ "
        "among the attacks on one image, which is what an attack can change; and how often chance would make that as "
        "far from 0 on other such images. Of other attacks p says nothing",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("on the source", "target", "on the target", "ρ", "ρ within images", "p", "images × attacks"):
        ranked.add_column(name)
    for rank in ranks:
        told = (f"{rank['rho']:+.2f}", f"{rank['rho_within']:+.2f}", f"{rank['p_within']:.2g}")
        size = f"{rank['images']} × {rank['attacks']}"
        ranked.add_row(rank["on_the_source"], escape(rank["target"]), rank["on_the_target"], *told, size)
    console.print(ranked)
