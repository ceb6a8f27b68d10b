"""Loaders of training examples, and stores, as Python callers ask for them."""

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline import Recipe, dataset, generate, report, training
from pipeline.data.codec import Preparation
from pipeline.dataset.examples import Examples
from pipeline.dataset.snapshot import shared_originals
from pipeline.ledger import Ledger
from pipeline.maintenance import finalize
from pipeline.models.spec import ModelSpec
from pipeline.storage import Storage
from pipeline.training import HeldOutSet, Schedule, TrainingData, TrainingRecipe, Workers
from pipeline.training.worker import with_known_labels
from tests.corpus.cases import Refusal, case
from tests.maintenance.stores import fill_store
from tests.samples import CLASSES, SIDE, attack, sample, tiny_job, write_shard

IMAGES = 5
# Keeps the folder until the process ends.
FOLDER = tempfile.TemporaryDirectory(prefix="gnp-loaders-")


def root() -> Path:
    return Path(FOLDER.name)


@cache
def weights() -> Path:
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), root() / "tiny.safetensors")
    return root() / "tiny.safetensors"


@cache
def store(*, sizes: int = 1, images: int = IMAGES, name: str = "d") -> Path:
    """A finalized store of five images under noise, of one size or, as two datasets, of two."""
    folder = root() / f"{name}-{sizes}-{images}"
    write_shard(folder / "in" / "s.tar", [sample(index) for index in range(images)])
    job = tiny_job(folder / "in", weights(), attacks=(attack("noise"),))
    ledger = Ledger(Storage(f"{folder}/store", create=True))
    for number in range(sizes):
        preparation = Preparation(resize=SIDE + 8 * number, crop=SIDE + 8 * number)
        fill_store(replace(job, data=replace(job.data, name=f"{name}{number}", preparation=preparation)), ledger)
    finalize.finalize(ledger)
    return folder / "store"


def examples(**settings: Any) -> Examples:
    return dataset.open(store()).examples(**settings)


def sizes_of(batches: Any) -> list[int]:
    """Sizes of batches, on each of which batch norm can be trained."""
    norm = nn.BatchNorm1d(3)
    sizes = []
    for batch in batches:
        norm(batch["images"].float().mean(dim=(2, 3)))
        sizes.append(len(batch["keys"]))
    return sizes


ENDS: tuple[tuple[str, dict[str, Any], list[int]], ...] = (
    ("one image is left", {"batch_size": 2}, [2, 3]),
    ("one image is left by the first batch", {"batch_size": 4}, [5]),
    ("no image is left", {"batch_size": 5}, [5]),
    ("there are fewer images than a batch takes", {"batch_size": 32}, [5]),
    ("there are pairs, and one image is left", {"batch_size": 2, "pairs": True}, [2, 3]),
    ("there are clean images, and one image is left", {"batch_size": 3, "clean": 0.5, "shuffled": False}, [3, 3, 4]),
    ("ranks have a few images each", {"batch_size": 2, "rank": 1, "ranks": 2, "padded": True}, [3]),
)
for words, settings, sizes in ENDS:

    @case("calls", f"an epoch at whose end {words}", (sizes, len(sizes)))
    def _(_: Path, settings: dict[str, Any] = settings) -> tuple[list[int], int]:
        return sizes_of(examples(**settings)), examples(**settings).batches_per_epoch()


@case("calls", "an epoch of fewer images than two for each worker", 2)
def _(_: Path) -> int:
    return examples(batch_size=4).batches_per_epoch(workers=4)


@case("calls", "an epoch of batches of one image", [1] * IMAGES)
def _(_: Path) -> list[int]:
    return [len(batch["keys"]) for batch in examples(batch_size=1)]


for loader in (DataLoader, StatefulDataLoader):

    @case("calls", f"a {loader.__name__} with its default batch size", [2, 3])
    def _(_: Path, loader: Callable[..., Any] = loader) -> list[int]:
        return sizes_of(loader(examples(batch_size=2)))

    @case("calls", f"a {loader.__name__} with a batch size of its own", Refusal("pass batch_size=None to it"))
    def _(_: Path, loader: Callable[..., Any] = loader) -> list[int]:
        return sizes_of(loader(examples(batch_size=2), batch_size=2))


@case(
    "calls",
    "examples of images of two sizes",
    Refusal(r"datasets: images of d0-\w+ have 32 x 32 pixels, of d1-\w+ 40 x 40"),
)
def _(_: Path) -> object:
    return dataset.open(store(sizes=2)).examples()


@case("calls", "examples of images of two sizes, of which one is chosen", [[5], [1] * 10])
def _(_: Path) -> list[list[int]]:
    both = dataset.open(store(sizes=2))
    return [sizes_of(both.examples(datasets="d1")), [len(batch["keys"]) for batch in both.examples(batch_size=1)]]


def chosen_by(**settings: Any) -> int:
    return examples(**settings).images_per_epoch()


TAKEN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("names as a set", {"attacks": {"noise"}}),
    ("a path as the cache", {"cache": root() / "cache"}),
    ("numbers of NumPy", {"batch_size": np.int64(2), "clean": np.float64(0), "seed": np.int32(1)}),
    ("a whole number as a share", {"clean": 0, "weights": {"noise": 1}}),
)
for words, settings in TAKEN:

    @case("calls", f"examples with {words}", IMAGES)
    def _(_: Path, settings: dict[str, Any] = settings) -> int:
        return chosen_by(**settings)


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("a batch size as text", {"batch_size": "8"}, "batch_size = '8': expected a whole number"),
    ("a batch size as a float", {"batch_size": 8.5}, r"batch_size = 8\.5: expected a whole number"),
    ("no batch size", {"batch_size": None}, "batch_size = None: expected a whole number"),
    ("a batch size of 0", {"batch_size": 0}, "batch_size = 0"),
    ("no parts at once", {"parts_at_once": 0}, "parts_at_once = 0"),
    ("pairs as text", {"pairs": "yes"}, "pairs = 'yes': expected True or False"),
    ("a share as text", {"clean": "half"}, "clean = 'half': not a finite number"),
    ("a share of 1", {"clean": 1.0}, r"clean = 1\.0"),
    ("clean images and pairs", {"clean": 0.5, "pairs": True}, "clean, pairs"),
    ("weights as a list", {"weights": [1]}, r"weights = \[1\]: expected a dict"),
    ("a weight as text", {"weights": {"noise": "twice"}}, "weights: noise = 'twice': not a finite number"),
    ("a negative weight", {"weights": {"noise": -1}}, "weights: noise = -1"),
    ("weights that leave no image", {"weights": {"noise": 0}, "clean": 0.5}, "weights: all are 0"),
    ("no seed", {"seed": None}, "seed = None: expected a whole number"),
    ("a negative seed", {"seed": -1}, "seed = -1"),
    ("a rank out of range", {"rank": 2, "ranks": 2}, "rank = 2 of 2: from 0 to 1"),
    ("a rank without ranks", {"rank": 3}, "rank, ranks: set both or neither"),
    ("ranks without a rank", {"ranks": 8}, "rank, ranks: set both or neither"),
    ("a rank as text", {"rank": "0", "ranks": "2"}, "rank = '0': expected a whole number or None"),
    ("attacks of None", {"attacks": None}, "attacks = None: expected a name, or a list of names"),
    ("attacks that are no names", {"attacks": [3]}, r"attacks = \[3\]: expected a name"),
    ("an attack that is not there", {"attacks": "mi"}, "attacks: 'mi' is none of this store's"),
    ("success that is true", {"success": True}, "success = True: expected a text"),
    ("no version", {"version": None}, "version = None: expected a text"),
    ("a number as the cache", {"cache": 5}, "cache = 5: expected the path of a folder"),
    ("an epsilon of words", {"epsilon": "abc"}, "epsilon = 'abc': not a finite number"),
    ("an epsilon divided by 0", {"epsilon": "8/0"}, "epsilon = '8/0': not a finite number"),
    ("an epsilon that is NaN", {"epsilon": float("nan")}, "epsilon = nan: not a finite number"),
    ("a misspelt setting", {"batchsize": 8}, "unexpected keyword argument 'batchsize'"),
)
for words, settings, cause in REFUSED:

    @case("calls", f"examples with {words}", Refusal(cause))
    def _(_: Path, settings: dict[str, Any] = settings) -> int:
        return chosen_by(**settings)


for words, epoch in (("below 0", -1), ("as text", "1"), ("of None", None)):

    @case("calls", f"an epoch {words}", Refusal(f"epoch = {epoch!r}: epochs count from 0"))
    def _(_: Path, epoch: Any = epoch) -> None:
        examples().set_epoch(epoch)


for words, state in (("of a model", {"weight": 1}), ("of nothing", None)):

    @case("calls", f"a loader's state {words}", Refusal("state_dict: not one of examples"))
    def _(_: Path, state: Any = state) -> None:
        examples().load_state_dict(state)


def training_recipe(at: Path, **settings: Any) -> TrainingRecipe:
    data = TrainingData((str(at),), classes=CLASSES, datasets=settings.pop("datasets", ()), clean=0)
    return TrainingRecipe(
        name="tiny",
        model=ModelSpec("test_resnet", name="tiny", checkpoint=str(weights()), input_size=SIDE),
        data=data,
        held_out=(HeldOutSet("same", str(at), datasets=("d0",)),),
        schedule=Schedule(epochs=1, batch_size=4),
        attack=attack("i"),
        engine=Workers(gpus_per_worker=0, **settings),
    )


@case("calls", "training on one image", Refusal(r"data: an epoch has 1 images for each of engine\.workers = 1, and"))
def _(folder: Path) -> object:
    return training.train(training_recipe(store(images=1)), str(folder / "results"))


@case(
    "calls", "training on fewer images than workers", Refusal(r"an epoch has 1 images for each of engine\.workers = 9")
)
def _(folder: Path) -> object:
    return training.train(training_recipe(store(), workers=9), str(folder / "results"))


@case(
    "calls", "training on images of two sizes", Refusal("32 x 32 pixels, of d1-.* 40 x 40; choose datasets of one size")
)
def _(folder: Path) -> object:
    return training.train(training_recipe(store(sizes=2)), str(folder / "results"))


@case("calls", "labels that training has no classes for", Refusal(r"data\.classes = 3: image image00004 has label 4"))
def _(_: Path) -> object:
    return list(with_known_labels(examples(), 3))


@case("calls", "held-out originals that are trained on under another name", IMAGES)
def _(_: Path) -> int:
    return shared_originals(examples().snapshot, dataset.open(store(name="same")).examples().snapshot)


def rows() -> tuple[int, int]:
    """What a store shows to a caller: its results, and rates."""
    return dataset.open(store()).results().num_rows, report.of(store()).success[0].rates["all"].n


async def rows_in_a_loop() -> tuple[int, int]:
    return rows()


def rows_in_a_thread() -> tuple[int, int]:
    found: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: found.append(rows()))
    thread.start()
    thread.join()
    return found[0]


PLACES: dict[str, Callable[[], tuple[int, int]]] = {
    "a path": rows,
    "a running asyncio loop, as in a notebook": lambda: asyncio.run(rows_in_a_loop()),
    "a thread that is not the main one": rows_in_a_thread,
}
for words, read in PLACES.items():

    @case("calls", f"a store read from {words}", (IMAGES, IMAGES))
    def _(_: Path, read: Callable[[], tuple[int, int]] = read) -> tuple[int, int]:
        return read()


def odd_stores() -> Iterator[tuple[str, Callable[[Path], object], str]]:
    yield "a number", lambda _: 5, "store is of type int: expected a folder, or s3://bucket/prefix"
    yield "None", lambda _: None, "store is of type NoneType: expected a folder"
    yield "an open store", lambda _: dataset.open(store()), "store is of type Dataset: expected a folder"
    yield "an empty folder", lambda folder: folder, "no run has written here"
    yield "a folder that is not there", lambda folder: folder / "nowhere", "nowhere: no such folder"
    yield "a path of an S3 address", lambda _: Path("s3://bucket/prefix"), "not a store; write s3://bucket/prefix"
    yield "no text", lambda _: "", "not a store"


for words, make, cause in odd_stores():
    for opener, read_store in (("dataset.open", dataset.open), ("report.of", report.of)):

        @case("calls", f"{opener} of {words}", Refusal(cause))
        def _(
            folder: Path, make: Callable[[Path], Any] = make, read_store: Callable[[Any], object] = read_store
        ) -> object:
            return read_store(make(folder))


@case("calls", "results of a kind that does not exist", Refusal("kind = 'all': expected 'clean' or 'transfer'"))
def _(_: Path) -> object:
    return dataset.open(store()).results("all")  # type: ignore[arg-type]


@case("calls", "a sample by its number", Refusal("sample 3: .* holds no original of that key"))
def _(_: Path) -> object:
    return dataset.open(store()).sample(3)  # type: ignore[arg-type]


RECIPES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "its text": ('[data]\nname = "d"\n', {}, r"recipe is text of several lines: .*Recipe\.model_validate"),
    "a dict": ({"data": {}}, {}, r"recipe is a dict: expected the path of a TOML file, or a Recipe"),
    "the class": (Recipe, {}, "recipe is a ModelMetaclass"),
    "None": (None, {}, "recipe is a NoneType"),
    "no file": ("nobody.toml", {}, r"nobody.toml: cannot be read"),
    "a limit as text": ("nobody.toml", {"limit": "3"}, "limit = '3': expected a number of images"),
    "a limit of 0": ("nobody.toml", {"limit": 0}, "limit = 0: expected a number of images, at least 1"),
}
for words, (recipe, settings, cause) in RECIPES.items():

    @case("calls", f"generate with {words} as its recipe" if not settings else f"generate with {words}", Refusal(cause))
    def _(folder: Path, recipe: Any = recipe, settings: dict[str, Any] = settings) -> object:
        return generate(recipe, folder / "store", **settings)
