"""The command line: one program, `gnp` or `python -m jobs`.

Imports of torch and Ray are left to the commands that need them, so that `--help` answers at once.
"""

import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console

from jobs.leave import leave
from pipeline.errors import GnpError, MissingError, RecipeError
from pipeline.ledger import KINDS, opened, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

app = typer.Typer(
    name="gnp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Transferable adversarial examples at scale: generate them, score how they transfer, read the results.",
)
for _name in ("stdout", "stderr"):  # closed by whoever started this
    if getattr(sys, _name) is None:
        setattr(sys, _name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
# Off a terminal there is no width to fit into; tables of ten targets need the room.
console = Console(width=None if sys.stdout.isatty() else 160)

_debug = False


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Before the command: of what goes wrong, also show the traceback.")
    ] = False,
) -> None:
    """Transferable adversarial examples at scale: generate them, score how they transfer, read the results."""
    global _debug
    _debug = debug


Store = Annotated[str, typer.Argument(help="Where results lie: a folder, or s3://bucket/prefix.", show_default=False)]


@app.command()
def generate(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe; see jobs/recipes/.", show_default=False)],
    store: Annotated[str, typer.Option(help="Where results go: a folder, or s3://bucket/prefix.", show_default=False)],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images, for a trial.")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster, such as `auto`; default: that of RAY_ADDRESS, or else one for this run."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also try again failed items and quarantined images.")
    ] = False,
    max_failed: Annotated[
        int, typer.Option(min=0, help="So many failed items (shards, or parts of them) still make exit code 0.")
    ] = 0,
    log: Annotated[
        Path | None, typer.Option(help="Add a line of JSON to this file for each item that a worker is done with.")
    ] = None,
) -> None:
    """Attacks the images of a recipe and scores how the result transfers.

    What the store already holds is not done again: a run that was cut off goes on where it stood, a new target,
    attack or source computes only what is new, and a second run of the same recipe does nothing. An item that fails
    three times is listed (`gnp status`) and passed over from then on, until its shard changes or --retry-failed is
    given. Two runs of one recipe at once share the work. SIGTERM or Ctrl-C ends a run within half a minute.

    Exit code: 0, everything is committed; 1, some items failed and are listed, or no image could be used; 2, the run
    could not start or go on; 130, it was stopped.

    Example: `gnp generate jobs/recipes/imagenet.toml --store s3://bucket/prefix --limit 100`
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # imports take seconds
    from jobs.generate import run

    raise typer.Exit(
        run(
            recipe,
            store,
            console=console,
            limit=limit,
            address=address,
            retry_failed=retry_failed,
            max_failed=max_failed,
            log=log,
        )
    )


@app.command()
def score(
    folder: Annotated[
        str,
        typer.Argument(help="Adversarial PNGs: a folder, or s3://bucket/prefix, of flat names.", show_default=False),
    ],
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Its data are the originals, its targets are scored; its attacks are not run.", show_default=False
        ),
    ],
    store: Annotated[str, typer.Option(help="Where results go: a folder, or s3://bucket/prefix.", show_default=False)],
    name: Annotated[str, typer.Option(help="What results call the attack.", show_default=False)],
    source: Annotated[str, typer.Option(help="What results call the model that was attacked.")] = "unknown",
    epsilon: Annotated[
        str, typer.Option(help="The budget that they were made with; an image outside is refused.")
    ] = "16/255",
    norm: Annotated[Literal["linf", "l2"], typer.Option(help="Of the budget.")] = "linf",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images of the recipe.")] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster; see `gnp generate`.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also try again failed items.")] = False,
) -> None:
    """Scores adversarial images that another tool made, on a recipe's targets, into the same store and reports.

    Images are matched to the recipe's by name: `0001.png` is the image with key `0001`, as `gnp shards` names them when
    it packs the originals. Each is measured against its original, and none may lie outside epsilon. A `labels.csv`
    beside them (filename,label) is held against the originals' labels. `gnp compare` sets them beside other attacks on
    the same images.

    Example: `gnp score adv/mifgsm jobs/recipes/imagenet.toml --store results --name their-mi --source resnet50`
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from jobs.score import Told, run

    raise typer.Exit(
        run(
            Told(folder, name, source, epsilon, norm),
            recipe,
            store,
            console=console,
            limit=limit,
            address=address,
            retry_failed=retry_failed,
        )
    )


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
        Literal["all", "target", "joint"],
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

        path = _folder(html, "--html") / "index.html"
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
        Literal["all", "target", "joint"],
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
        folder = _folder(out)
        tables.show_comparisons(compared, denominator=denominator, console=console)
        grouped: dict[tuple[str, str], list[comparing.Together]] = {}
        for row in compared.together:
            grouped.setdefault((row.dataset, row.ids[0] or "every source"), []).append(row)
        for (dataset, source), rows in grouped.items():
            _write(folder, f"compare {base} {source} {dataset}", forest.draw(rows, base=base, denominator=denominator))
        tables.show_missing(ledger.missing({unit for kind in KINDS for unit in ledger.units(kind)}), console=console)


@app.command()
def ablation(
    store: Store,
    attack: Annotated[str, typer.Option(help="Name of the grid: gnp+mi for gnp+mi[gnp.beta=0.4] and its like.")],
    out: Annotated[Path, typer.Option(help="Folder for the figures, one a dataset and source.")] = Path("."),
    denominator: Annotated[
        Literal["all", "target", "joint"], typer.Option(help="Which images are counted; see `gnp report`.")
    ] = "target",
) -> None:
    """Shows an attack over a grid of its settings: transfer and source success at each point, a table and a figure."""
    from jobs import tables
    from pipeline import ablation as grid
    from pipeline.report import summarise

    ledger, folder = opened(store), _folder(out)
    found = grid.points(ledger, summarise(ledger), attack=attack, denominator=denominator)
    tables.show_grid(found, grid.axes(found), denominator=denominator, console=console)
    for dataset, source in dict.fromkeys((point.dataset, point.source_id) for point in found):
        some = [point for point in found if (point.dataset, point.source_id) == (dataset, source)]
        _write(folder, f"ablation {attack} {source} {dataset}", grid.draw(some, denominator=denominator))


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

    run(recipe, _folder(out), limit=limit, console=console)


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

    run(recipe, opened(store), _folder(out), names=attack or [], limit=limit, console=console)


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

    folder, sample = _folder(out), dataset.open(store).sample(key)
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
def gc(
    store: Store,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this, it is only listed.")] = False,
    older_than: Annotated[float, typer.Option(min=0, help="Hours; what is younger may be somebody's at work.")] = 24,
) -> None:
    """Lists, or removes, what is of no use: data without a marker, claims of dead runs, unfinished uploads.

    Nothing that a marker names is ever touched, and nothing is removed while a run is at work.
    """
    from pipeline.garbage import find, remove

    ledger, age_s = opened(store), 3600 * older_than
    found = find(ledger, age_s=age_s)
    for item in found:
        sys.stdout.write(f"{item.key}: {item.why} ({item.size_bytes:,} bytes)\n")
    size = sum(item.size_bytes for item in found)
    if delete:
        removed = remove(ledger, found, age_s=age_s)
        sys.stdout.write(f"{removed} of {len(found)} removed\n")
    else:
        sys.stdout.write(f"{len(found)} things, {size:,} bytes; --delete removes them\n")


@app.command()
def finalize(
    store: Store,
    partial: Annotated[bool, typer.Option("--partial", help="Also where something is still missing.")] = False,
) -> None:
    """Makes a version that readers take whole: compacted Parquet, a manifest with hashes, timm's `_info.json`, a card.

    It lies in versions/ID, and `latest.json` says which is the latest. The same store gives the same version.
    """
    from pipeline.finalize import finalize as make

    ledger = opened(store)
    version = make(ledger, partial=partial)
    missing = f", {version.missing} MISSING" if version.missing else ""
    sys.stdout.write(
        f"{ledger.storage.at(version.key)}: {version.images} adversarial images, {version.rows} rows, "
        f"{version.objects} objects{missing}\n"
    )


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


@app.command()
def shards(
    folder: Annotated[Path, typer.Argument(help="An ImageFolder, or images with a labels.csv.", show_default=False)],
    out: Annotated[
        str, typer.Argument(help="Where the shards go: a folder, or s3://bucket/prefix.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="Prefix of the shards' names.")] = "images",
    per_shard: Annotated[int, typer.Option(min=1, help="Images in a shard.")] = 1000,
) -> None:
    """Packs an ImageFolder, or a folder with labels.csv, into WebDataset shards.

    An ImageFolder has one sub-folder per class, numbered in the order of the sorted names: for ImageNet's n01440764…
    these are the usual indices. A labels.csv has the columns filename and label, the class index from 0, and if you
    like targeted_label, which targeted attacks take with target_class = "shard". Image files
    are stored as they are.
    """
    from pipeline.pack import from_folder

    names, left_out = from_folder(folder, out, name=name, per_shard=per_shard)
    for path in left_out:
        sys.stderr.write(f"left out, no image: {path}\n")
    sys.stdout.write(f"{len(names)} shards in {out}: {names[0]} … {names[-1]}\n")


def _folder(out: Path, option: str = "--out") -> Path:
    """The folder of an option, made before hours of work end at it.

    Raises:
        RecipeError: It cannot be one.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{option} {out}: cannot be made a folder ({error.strerror})") from error
    return out


def _write(folder: Path, name: str, figure: "Figure") -> None:
    """A figure, and where it lies."""
    from pipeline import drawing

    path = folder / f"{slug(name)}.png"
    path.write_bytes(drawing.png(figure))
    sys.stdout.write(f"{path}\n")


def main() -> NoReturn:
    """Runs the program, and ends the process with its exit code."""
    leave(run())


def run() -> int:
    """Runs the program; returns its exit code. What a user can mend ends in one line and 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except SystemExit as ended:  # how typer ends, always
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            sys.stderr.write("stopped; what is committed stands: run the same command again to go on\n")
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except GnpError as error:
        if _debug:
            traceback.print_exc()
        sys.stderr.write(f"error: {error}\n")
        return 2
    except Exception:  # shown whole; let through, it would end past `leave`, waiting for threads without end
        logging.getLogger(__name__).exception("this is a defect of gnp")
        return 1
    return 0
