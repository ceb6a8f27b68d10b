"""Commands that look: at what a store holds, and at what attacks do."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.app import Denominator, Store, app, console, folder_at, write
from pipeline.errors import MissingError, RecipeError
from pipeline.ledger import KINDS, opened, slug


@app.command()
def report(
    store: Store,
    html: Annotated[
        Path | None, typer.Option(help="Write a page, whole in itself, to index.html in this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every rate under every denominator, for programs.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Each target's rates, and all others', a line a rate.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="The table, for a paper (booktabs).")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The table, for a README.")] = False,
    denominator: Annotated[
        Denominator,
        typer.Option(
            help="Success among all images; among those that the target classifies correctly when clean; or among "
            "those that every target does (the paper's lineage)."
        ),
    ] = "target",
    base: Annotated[str, typer.Option(help="On the page: the attack that gains are over.")] = "mi",
) -> None:
    """Shows success rates, source × target × attack, with denominators and 95% intervals.

    The page (`--html FOLDER`) has them as a heat map to filter and sort, and beside them gains with intervals and p,
    curves over ε and steps, grids of settings, success by class, how far images are moved, what right answers turn
    into, samples, what was quarantined or failed, and what made it all. It needs no network.
    """
    from jobs import formats, tables
    from pipeline.report import summarise, to_json

    if sum((html is not None, as_json, as_csv, as_latex, as_markdown)) > 1:
        raise RecipeError("gnp report: --html, --json, --csv, --latex and --markdown exclude each other; give one")
    ledger = opened(store)
    if html is not None:
        from pipeline import page

        path = folder_at(html, "--html") / "index.html"
        path.write_text(page.render(ledger, store=store, base=base, denominator=denominator), encoding="utf-8")
        sys.stdout.write(f"{path}\n")
        return
    summary = summarise(ledger)
    if as_json:
        sys.stdout.write(json.dumps(to_json(summary), indent=1) + "\n")
    elif as_csv:
        sys.stdout.write(formats.csv_of(summary))
    elif as_latex or as_markdown:
        sys.stdout.write(formats.table(summary, denominator=denominator, latex=as_latex))
    else:
        tables.show(summary, denominator=denominator, console=console)


@app.command()
def compare(
    store: Store,
    base: Annotated[str, typer.Option(help="Name of the attack that the others are held against.")] = "mi",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON instead of tables and figures.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the figures, one a dataset and source.")] = Path("."),
    denominator: Annotated[
        Denominator,
        typer.Option(help="Which images are counted; see `gnp report`."),
    ] = "target",
) -> None:
    """Sets attacks beside a base attack on the same images: gain, its 95% interval, McNemar's p, and what each costs.

    Only attacks from the same source at the same budget are compared; of a base with several numbers of steps, each.
    On each target; on all but the source itself together; and, where there are several sources, from all of these. The
    figures have each attack beside the base that costs about as much.
    """
    from jobs import tables
    from pipeline import compare as comparing
    from pipeline import forest

    ledger = opened(store)
    compared = comparing.compare(ledger, base=base, denominator=denominator)
    if as_json:
        sys.stdout.write(json.dumps(comparing.to_json(compared), indent=1) + "\n")
    elif not compared.each:
        raise MissingError(f"{store}: no attack here can be set beside {base!r}; gnp report names the attacks")
    else:
        folder = folder_at(out)
        tables.show_comparisons(compared, denominator=denominator, console=console)
        grouped: dict[tuple[str, str], list[comparing.Together]] = {}
        for row in compared.together:
            grouped.setdefault((row.dataset, row.ids[0] or "every source"), []).append(row)
        for (dataset, source), rows in grouped.items():
            write(folder, f"compare {base} {source} {dataset}", forest.draw(rows, base=base, denominator=denominator))
        tables.show_missing(ledger.missing({unit for kind in KINDS for unit in ledger.units(kind)}), console=console)


@app.command()
def ablation(
    store: Store,
    attack: Annotated[str, typer.Option(help="Name of the grid: gnp+mi for gnp+mi[gnp.beta=0.4] and its like.")],
    out: Annotated[Path, typer.Option(help="Folder for the figures, one a dataset and source.")] = Path("."),
    denominator: Annotated[Denominator, typer.Option(help="Which images are counted; see `gnp report`.")] = "target",
) -> None:
    """Shows an attack over a grid of its settings: transfer and source success at each point, a table and a figure."""
    from jobs import tables
    from pipeline import ablation as grid
    from pipeline.report import summarise

    ledger, folder = opened(store), folder_at(out)
    found = grid.points(ledger, summarise(ledger), attack=attack, denominator=denominator)
    tables.show_grid(found, grid.axes(found), denominator=denominator, console=console)
    for dataset, source in dict.fromkeys((point.dataset, point.source_id) for point in found):
        some = [point for point in found if (point.dataset, point.source_id) == (dataset, source)]
        write(folder, f"ablation {attack} {source} {dataset}", grid.draw(some, denominator=denominator))


@app.command()
def curvature(
    recipe: Annotated[Path, typer.Argument(help="Its sources, data, targets and first budget.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the figures, one a source, and curvature.json.")] = Path("."),
    limit: Annotated[int, typer.Option(min=1, help="Only the first N images.")] = 100,
) -> None:
    """Holds each form of the penalty against the true Hessian-vector product, over its length and precision.

    For each source: forward, backward and central difference and the exact product, in the precisions that this machine
    has, by cosine and relative error to the product in float64; and what MI-FGSM with each achieves on the targets.
    It decides which form may run in which precision. On this machine alone, without Ray; a GPU is used if there is one.

    Example: `gnp curvature jobs/recipes/demo.toml --out build/curvature`
    """
    from jobs.curvature import run

    run(recipe, folder_at(out), limit=limit, console=console)


@app.command()
def landscape(
    recipe: Annotated[Path, typer.Argument(help="What the store was filled by.", show_default=False)],
    store: Annotated[str, typer.Option(help="Where results lie: a folder, or s3://bucket/prefix.", show_default=False)],
    attack: Annotated[
        list[str] | None, typer.Option(help="Name of an attack; again for each. Default: all of the recipe.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures, one a source, and landscape.json.")] = Path("."),
    limit: Annotated[int, typer.Option(min=1, help="Only the first N images of each attack.")] = 100,
) -> None:
    """Looks at the loss around stored adversarial images: are they in a flat region, and does that go with transfer?

    For each attack, on the source and every plain target: the gradient's norm, sharpness, the loss along a random
    direction and along the source's gradient, and how much of the perturbation it takes; then rank correlations of
    flatness on the source with flatness and success on each target. On this machine alone, without Ray.

    Example: `gnp landscape jobs/recipes/demo.toml --store build/demo/store --attack mi --attack gnp-backward+mi`
    """
    from jobs.landscape import run

    run(recipe, opened(store), folder_at(out), names=attack or [], limit=limit, console=console)


@app.command()
def show(
    store: Store,
    key: Annotated[str, typer.Argument(help="Of the sample; or SHARD/KEY, or DATASET/SHARD/KEY.", show_default=False)],
    attack: Annotated[str, typer.Option(help="Name of the attack in the picture.", show_default=False)] = "",
    source: Annotated[str, typer.Option(help="Name of the model attacked.", show_default=False)] = "",
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("."),
) -> None:
    """Shows one sample: its picture, and what every target says of it, clean and under each attack.

    In the picture is the attack that fools the most targets, of those that --attack and --source leave.
    """
    from jobs import tables
    from pipeline import dataset

    folder, sample = folder_at(out), dataset.open(store).sample(key)
    said = [each for each in sample.said if attack in ("", each.attack) and source in ("", each.source)]
    if not said:
        names = ", ".join(sorted({f"{each.attack} from {each.source}" for each in sample.said})) or "none yet"
        raise MissingError(f"{key}: no such attack on it has been scored; there are: {names}")
    tables.show_sample(sample, said, console=console)
    path = folder / f"{slug(f'{sample.shard} {sample.key}')}.png"
    path.write_bytes(sample.png(max(said, key=lambda each: each.fooled)))
    sys.stdout.write(f"{path}\n")


@app.command()
def status(
    store: Store,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="List every image that could not be used instead, and why.")
    ] = False,
) -> None:
    """Says how far each recipe that was run here is, who is at it, how fast, and what failed.

    It reads the store alone, so it answers while a run goes on elsewhere as well as after.
    """
    ledger = opened(store)
    if quarantined:
        from pipeline import quarantine

        for image in quarantine.listed(ledger):
            sys.stdout.write(f"{image.dataset}/{image.shard}/{image.key}: {image.reason}\n")
    else:
        from jobs import tables
        from pipeline.status import status as look

        tables.show_status(look(ledger), console=console)


@app.command()
def verify(
    store: Store,
    sample: Annotated[
        float, typer.Option(min=1e-9, max=1, help="The share of the parts to re-read; completeness is checked of all.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Which share.")] = 0,
) -> None:
    """Audits what is stored: re-reads every object and checks hashes, counts, ε on the stored pixels, completeness.

    Exit code: 0, everything is sound; 1, something is wrong.
    """
    from pipeline.verify import audit

    found = audit(opened(store), fraction=sample, seed=seed)
    for problem in found.problems:
        sys.stdout.write(f"{problem.where}: {problem.what}\n")
    count = len(found.problems)
    verdict = f"{count} problem{'s' * (count > 1)}" if count else "all sound"
    parts = "" if found.parts == found.of_parts else f" in {found.parts} of {found.of_parts} parts"
    sys.stdout.write(f"{found.objects} objects re-read{parts}, {found.images} adversarial images measured: {verdict}\n")
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def ls(
    store: Store,
    kind: Annotated[
        Literal["original", "adversarial", "clean", "transfer"] | None,
        typer.Option(help="Only originals, adversarial shards, clean predictions, or transfer results."),
    ] = None,
) -> None:
    """Lists the committed shards (.tar) and results (.parquet), one address a line; orphans are not listed.

    `gnp ls STORE --kind transfer` is what to hand to DuckDB or Polars.
    """
    ledger = opened(store)
    # Printed when all are known: half a list would pass for the whole.
    kinds = KINDS if kind is None else (kind,)
    listed = [marker.object for each in kinds for marker in ledger.markers(sorted(ledger.units(each)))]
    sys.stdout.writelines(f"{ledger.storage.at(name)}\n" for name in listed)
