"""Commands that make something, or take it away: generate, train, score, shards, finalize, gc."""

import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.app import Store, app, console, since_when
from pipeline.ledger import opened


@app.command()
def generate(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe; see jobs/recipes/.", show_default=False)],
    store: Annotated[str, typer.Option(help="Where results go: a folder, or s3://bucket/prefix.", show_default=False)],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images, for a trial.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Work on shards alone that were written since: 36h, 7d, or 2026-11-01T02:00 (UTC).", show_default=False
        ),
    ] = None,
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
        Path | None,
        typer.Option(
            help="Add a line of JSON to this file (-: standard error) for each item that a worker is done with."
        ),
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
            since=0.0 if since is None else since_when(since, time.time()),
            address=address,
            retry_failed=retry_failed,
            max_failed=max_failed,
            log=log,
        )
    )


@app.command()
def train(
    recipe: Annotated[
        Path, typer.Argument(help="A TOML recipe for training; see docs/training.md.", show_default=False)
    ],
    store: Annotated[
        str,
        typer.Option(help="Where weights, figures and states go: a folder, or s3://bucket/prefix.", show_default=False),
    ],
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster, such as `auto`; default: that of RAY_ADDRESS, or else one for this run."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
) -> None:
    """Trains a model on clean and stored adversarial images, and measures what it gained.

    What is read are finalized stores (`gnp finalize`), each in one version from beginning to end. A run that was cut
    off, or told to stop by SIGTERM or Ctrl-C, goes on from the last state that was kept, with the images that come
    next; a second run of the same recipe does nothing, until a store has another version.

    Exit code: 0, trained, now or before; 2, training could not start or go on; 130, it was stopped.

    Example: `gnp train training.toml --store s3://bucket/prefix`
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from jobs.train import run

    raise typer.Exit(run(recipe, store, console=console, address=address, seed=seed))


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
def gc(
    store: Store,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this, it is only listed.")] = False,
    older_than: Annotated[float, typer.Option(min=0, help="Hours; what is younger may be somebody's at work.")] = 24,
    keep_versions: Annotated[
        int | None, typer.Option(min=1, help="Also finished versions but for the last so many; by default, all stay.")
    ] = None,
) -> None:
    """Lists, or removes, what is of no use: data without a marker, claims of dead runs, unfinished uploads, versions.

    Nothing that a marker names is ever touched, and nothing is removed while a run is at work. Of versions, the latest
    stays, and those that training which is kept in this store has read; what only a removed version named goes the
    next time.
    """
    from pipeline.garbage import find, remove

    ledger, age_s = opened(store), 3600 * older_than
    found = find(ledger, age_s=age_s, keep_versions=keep_versions)
    for item in found:
        sys.stdout.write(f"{item.key}: {item.why} ({item.size_bytes:,} bytes)\n")
    size = sum(item.size_bytes for item in found)
    if delete:
        removed = remove(ledger, found, age_s=age_s, keep_versions=keep_versions)
        sys.stdout.write(f"{removed} of {len(found)} removed\n")
    else:
        sys.stdout.write(f"{len(found)} things, {size:,} bytes; --delete removes them\n")
