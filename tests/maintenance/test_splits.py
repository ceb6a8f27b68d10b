import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import webdataset

from pipeline.data import parts
from pipeline.ledger import Ledger
from pipeline.maintenance.finalize import finalize
from pipeline.maintenance.splits import split_name
from pipeline.plan.job import Job
from tests.maintenance.stores import ATTACKS, IMAGES, fill_store, new_ledger, two_shard_job
from tests.samples import sample, tiny_job, write_shard


def read_by_timm(ledger: Ledger, split: str) -> list[tuple[str, int]]:
    """What timm's reader yields, in order: a digest of the pixels, and the label."""
    read = timm.data.create_dataset("wds/gnp", root=ledger.storage.url, split=split, is_training=False)
    digests = [(hashlib.sha256(np.asarray(image).tobytes()).hexdigest(), int(label)) for image, label in read]
    assert len(read) == len(digests)
    return digests


def read_from_store(ledger: Ledger, kind: str, attack_id: str = "") -> list[tuple[str, int]]:
    digests = []
    for marker in ledger.read_markers(sorted(ledger.list_units(kind))):
        images = parts.decode_tar(ledger.read_data(marker), name=marker.object)
        pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        if marker.unit.attack.startswith(attack_id):
            digests += [
                (hashlib.sha256(p.tobytes()).hexdigest(), int(y)) for p, y in zip(pixels, images.labels, strict=True)
            ]
    return digests


def test_timm_reads_every_sample_once(ledger: Ledger) -> None:
    finalize(ledger)
    splits = json.loads(ledger.storage.get("_info.json"))["splits"]
    assert read_by_timm(ledger, "adversarial") == read_from_store(ledger, "adversarial")
    assert read_by_timm(ledger, "original") == read_from_store(ledger, "original")
    for attack_id in {unit.attack for unit in ledger.list_units("adversarial")}:
        (source,) = {unit.source for unit in ledger.list_units("adversarial")}
        split = split_name("adversarial", source, attack_id)
        assert splits[split]["num_samples"] == IMAGES
        assert read_by_timm(ledger, split) == read_from_store(ledger, "adversarial", attack_id)
    assert len(splits) == 2 + ATTACKS


def test_webdataset_reads_every_sample_once(ledger: Ledger) -> None:
    finalize(ledger)
    names = json.loads(ledger.storage.get("_info.json"))["splits"]["adversarial"]["filenames"]
    read = webdataset.WebDataset([ledger.storage.url_of(name) for name in names], shardshuffle=False).decode("pil")
    assert sum(1 for image in read if image["png"].size == (32, 32)) == IMAGES * ATTACKS


def test_parts_of_one_image_are_read_completely(tmp_path: Path, tiny_checkpoint: Path) -> None:
    ledger = new_ledger(tmp_path / "store")
    fill_store(two_shard_job(tmp_path / "in", tiny_checkpoint, part_size=1), ledger)
    finalize(ledger)
    assert read_by_timm(ledger, "adversarial") == read_from_store(ledger, "adversarial")
    assert len(read_by_timm(ledger, "adversarial")) == IMAGES * ATTACKS


def test_parts_without_images_are_in_no_split(tmp_path: Path, tiny_checkpoint: Path) -> None:
    bad = [{"__key__": f"bad{index}", "jpg": b"x", "cls": b"1"} for index in range(4)]
    write_shard(tmp_path / "in" / "s.tar", [*bad, sample(0)])
    ledger = new_ledger(tmp_path / "store")
    fill_store(tiny_job(tmp_path / "in", tiny_checkpoint), ledger)
    version = finalize(ledger)
    assert (version.images, version.rows) == (1, 2)
    splits = json.loads(ledger.storage.get("_info.json"))["splits"]
    assert {name: split["shard_lengths"] for name, split in splits.items()} == {name: [1] for name in splits}
    assert len(read_by_timm(ledger, "original")) == 1
    assert "1 adversarial images of 1 originals; 4 input images could not be used" in (
        ledger.storage.get("README.md").decode()
    )


def test_splits_of_several_datasets_are_prefixed(ledger: Ledger, job: Job) -> None:
    fill_store(replace(job, data=replace(job.data, name="start..again")), ledger)
    version = finalize(ledger)
    assert version.images == 2 * IMAGES * ATTACKS
    names = json.loads(ledger.storage.get("_info.json"))["splits"].keys()
    assert len(names) == 2 * (2 + ATTACKS)
    (split,) = (name for name in names if name.startswith("st-rt-again") and name.endswith(":original"))
    assert len(read_by_timm(ledger, split)) == IMAGES


@pytest.mark.parametrize(
    "piece", ["target", "a..b", "...", "tatarr", "t..ar", "x.tar", "a b|c\n", "Ünï", "ta{r}", "tar" * 3]
)
def test_a_split_name_is_never_a_file_pattern_for_timm(piece: str) -> None:
    name = split_name("adversarial", piece, ".x")
    assert "tar" not in name
    assert ".." not in name
    assert name.startswith("adversarial:")
    assert not set(name) & set(' |{}"\n`')
