"""Other libraries read every stored sample once: timm, WebDataset, Hugging Face datasets, Ray Data."""

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import datasets
import numpy as np
import pytest
import ray
import timm.data
import torch
import webdataset
from PIL import Image
from timm.data.loader import create_loader

from pipeline.data import parts
from pipeline.ledger import Ledger
from pipeline.maintenance.finalize import finalize
from pipeline.storage import Storage
from tests.maintenance.stores import fill_store
from tests.samples import attack, sample, tiny_job, write_shard

Digests = list[tuple[str, int]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """26 images of two shards in parts of 4 under two attacks, finalized."""
    folder = tmp_path_factory.mktemp("read")
    for shard in range(2):
        write_shard(folder / "in" / f"s-{shard}.tar", [sample(100 * shard + index) for index in range(13)])
    attacks = attack("noise", epsilon=Fraction(2, 255)), attack("mi")
    ledger = Ledger(Storage(f"{folder}/store", create=True))
    fill_store(tiny_job(folder / "in", tiny_checkpoint, attacks=attacks), ledger)
    finalize(ledger)
    return folder / "store"


@pytest.fixture(scope="module")
def files(store: Path) -> list[str]:
    """The adversarial shards, as `_info.json` lists them."""
    split = json.loads((store / "_info.json").read_text())["splits"]["adversarial"]
    return [str(store / name) for name in split["filenames"]]


@pytest.fixture(scope="module")
def expected(store: Path) -> Digests:
    ledger = Ledger(Storage(str(store)))
    digests = []
    for marker in ledger.read_markers(ledger.list_units("adversarial")):
        images = parts.decode_tar(ledger.read_data(marker), name=marker.object)
        pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        digests += [(digest(image), int(label)) for image, label in zip(pixels, images.labels, strict=True)]
    assert len(digests) == 52
    return sorted(digests)


def digest(image: np.ndarray | Image.Image) -> str:
    """Digest of (H, W, 3) uint8 pixels."""
    return hashlib.sha256(np.ascontiguousarray(np.asarray(image)).tobytes()).hexdigest()


@pytest.mark.parametrize(("training", "workers"), [(False, 0), (False, 2), (True, 0)])
def test_timm(store: Path, expected: Digests, training: bool, workers: int) -> None:
    """Reads as timm's training script does: its reader, its transforms, its loader.

    Training with several workers is left out: timm balances them by repeating some images and skipping others.
    """
    read = timm.data.create_dataset(
        "wds/gnp", root=str(store), split="adversarial", is_training=training, batch_size=4, seed=1
    )
    loader = create_loader(
        read,
        input_size=(3, 32, 32),
        batch_size=4,
        is_training=training,
        no_aug=True,
        crop_pct=1.0,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        num_workers=workers,
        persistent_workers=False,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )
    digests = [
        (digest((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()), int(label))
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    ]
    assert sorted(digests) == expected


def test_webdataset(files: list[str], expected: Digests) -> None:
    read = webdataset.WebDataset(files, shardshuffle=4, seed=0).decode("rgb8").to_tuple("png", "cls")
    assert sorted((digest(image), int(label)) for image, label in read) == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face(files: list[str], expected: Digests, streaming: bool, tmp_path: Path) -> None:
    read = datasets.load_dataset(
        "webdataset", data_files={"train": files}, split="train", streaming=streaming, cache_dir=str(tmp_path)
    )
    assert sorted((digest(row["png"]), int(row["cls"])) for row in read) == expected
    assert {row["json"]["attack"]["name"] for row in read} == {"mi", "noise"}


@pytest.mark.usefixtures("ray_on_four_devices")
def test_ray_data(files: list[str], expected: Digests) -> None:
    read = ray.data.read_webdataset(files, decoder=True)
    digests = [(digest(row["png"]), int(row["cls"])) for row in read.iter_rows()]
    assert sorted(digests) == expected
