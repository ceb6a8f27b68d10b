import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest

from pipeline import dataset
from pipeline.dataset.examples import Examples
from pipeline.dataset.mix import Mix
from pipeline.dataset.snapshot import ImageFilter, merge, shared_originals, take_snapshot
from pipeline.errors import MissingError, RecipeError
from pipeline.ledger import Ledger
from pipeline.maintenance.finalize import finalize
from pipeline.storage import Storage
from tests.dataset.batches import IMAGES, all_stored, read_digests, stored_digests
from tests.maintenance.stores import fill_store
from tests.samples import attack, sample, tiny_job, write_shard


def test_a_filter_by_attack_source_dataset_and_epsilon(filled_store: Path) -> None:
    open_store = dataset.open(str(filled_store))
    by_name = open_store.examples(attacks=["noise"], sources=["tiny"], datasets=["tiny"])
    by_epsilon = open_store.examples(epsilon=2 / 255)
    assert open_store.examples(attacks="noise", epsilon="2/255").snapshot.id == by_epsilon.snapshot.id
    assert {attack.rpartition("-")[0] for _, attack, _ in read_digests(by_name)} == {"noise"}
    assert by_name.snapshot.id == by_epsilon.snapshot.id
    for wrong in ({"attacks": ["no"]}, {"sources": ["no"]}, {"datasets": ["no"]}, {"success": "no"}):
        ((what, _),) = wrong.items()
        with pytest.raises(RecipeError, match=rf"^{what}: 'no' is n.*: .*tiny|noise"):
            open_store.examples(**wrong)
    with pytest.raises(RecipeError, match=r"epsilon: 1/255 is none of this store's: 2/255, 8/255"):
        open_store.examples(epsilon="1/255")


def test_shared_originals_are_those_of_equal_parts(filled_store: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Whichever stores they are in; parts of other shards are not shared."""
    write_shard(tmp_path / "in" / "s-1.tar", [sample(100 + index) for index in range(15)])
    write_shard(tmp_path / "in" / "s-2.tar", [sample(200 + index) for index in range(6)])
    other = Ledger(Storage(str(tmp_path / "store"), create=True))
    fill_store(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"),)), other)
    ledger = Ledger(Storage(str(filled_store)))
    noise = take_snapshot(ledger, ImageFilter(attacks=["noise"]))
    all_ = take_snapshot(ledger, ImageFilter())
    elsewhere = take_snapshot(other, ImageFilter())
    assert (shared_originals(noise, all_), shared_originals(all_, noise)) == (IMAGES, IMAGES)
    assert (shared_originals(noise, elsewhere), shared_originals(elsewhere, noise)) == (15, 15)


def test_a_filter_by_success_agrees_with_the_results(filled_store: Path) -> None:
    open_store = dataset.open(str(filled_store))
    clean = {row["key"]: row["prediction"] == row["label"] for row in open_store.results("clean").to_pylist()}
    fooled = {
        (row["key"], row["attack_id"])
        for row in open_store.results().to_pylist()
        if clean[row["key"]] and row["prediction"] != row["label"]
    }
    assert fooled
    for success in ("any", "all", "tiny"):
        assert {(key, attack) for key, attack, _ in read_digests(open_store.examples(success=success))} == fooled
    flagged = list(open_store.examples(success="tiny", only_successful=False))
    assert sorted(read_digests(flagged)) == all_stored(filled_store)
    mixed = open_store.examples(success="tiny", only_successful=False, clean=0.9, batch_size=1)
    assert all(len(batch["success"]) == 1 for batch in mixed), "of clean images alone too"
    flagged_as_success = {
        (key, attack)
        for batch in flagged
        for key, attack, success in zip(batch["keys"], batch["attacks"], batch["success"].tolist(), strict=True)
        if success
    }
    assert flagged_as_success == fooled


def test_unscored_images_are_kept_unless_only_successful(store: Path) -> None:
    for marker in (store / "markers" / "transfer").rglob("s-1/*.json"):
        marker.unlink()
    flagged = dataset.open(str(store)).examples(success="any", only_successful=False)
    assert len(read_digests(flagged)) == 60
    assert flagged.snapshot.id != dataset.open(str(store)).examples().snapshot.id
    shutil.rmtree(store / "markers" / "transfer")
    with pytest.raises(RecipeError, match="no target has been scored on these images; run generate or score first"):
        dataset.open(str(store)).examples(success="tiny")


def test_a_growing_store_does_not_change_an_epoch(store: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ledger = Ledger(Storage(str(store)))
    examples = dataset.open(str(store)).examples()
    finalize(ledger)
    before, expected = examples.snapshot.id, all_stored(store)
    write_shard(tmp_path / "more" / "t.tar", [sample(900 + index) for index in range(5)])
    attacks = (attack("noise", epsilon=Fraction(2, 255)),)
    fill_store(tiny_job(tmp_path / "more", tiny_checkpoint, attacks=attacks), ledger)
    assert sorted(read_digests(examples)) == expected
    assert len(read_digests(dataset.open(str(store)).examples())) == 65
    for version in ("latest", json.loads((store / "latest.json").read_text())["version"]):
        assert dataset.open(str(store)).examples(version=version).snapshot.id == before
    with pytest.raises(MissingError, match="no version 'tomorrow' is finalized here"):
        dataset.open(str(store)).examples(version="tomorrow")


def test_a_version_is_read_without_its_markers(store: Path) -> None:
    finalize(Ledger(Storage(str(store))))
    expected = dataset.open(str(store)).examples(success="any").snapshot.id
    for kind in ("transfer", "clean"):
        shutil.rmtree(store / "markers" / kind)
    assert dataset.open(str(store)).examples(success="any", version="latest").snapshot.id == expected


def test_several_stores_are_read_as_one(filled_store: Path, store: Path) -> None:
    taken = [
        take_snapshot(Ledger(Storage(str(path))), ImageFilter(attacks=[attack]))
        for path, attack in ((filled_store, "noise"), (store, "gnp+mi"))
    ]
    examples = Examples(merge(taken), Mix(clean=0.5))
    digests = read_digests(examples)
    originals = stored_digests(filled_store, "original")
    assert sorted(image for image in digests if image[1]) == all_stored(filled_store)
    assert sum(not attack for _, attack, _ in digests) == 60
    assert all(originals[key, ""] == digest for key, attack, digest in digests if not attack)
