import inspect
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import dataset
from pipeline.data import codec
from pipeline.dataset.batch import Batch
from pipeline.dataset.mix import Mix
from pipeline.errors import IntegrityError, RecipeError
from tests.dataset.batches import ATTACKS, IMAGES, all_stored, read_digests, stored_digests


def test_an_epoch_has_every_stored_image_once(filled_store: Path) -> None:
    examples = dataset.open(str(filled_store)).examples(batch_size=7)
    batches = list(examples)
    assert sorted(read_digests(batches)) == all_stored(filled_store)
    assert [len(batch["keys"]) for batch in batches] == [7] * 8 + [4]
    assert examples.batches_per_epoch() == 9
    assert examples.images_per_epoch() == IMAGES * ATTACKS
    first: Batch = batches[0]
    assert (first["images"].shape, first["images"].dtype) == ((7, 3, 32, 32), torch.uint8)
    assert first["labels"].tolist() == [int(key[-5:]) % 10 for key in first["keys"]]
    assert first["adversarial"].all()
    assert {name.rpartition("-")[0] for name in first["sources"] + first["datasets"]} == {"tiny"}


@pytest.mark.timeout(600)
def test_two_ranks_of_two_workers_read_every_image_exactly_once(filled_store: Path) -> None:
    digests = []
    for rank in range(2):
        examples = dataset.open(str(filled_store)).examples(batch_size=4, rank=rank, ranks=2)
        batches = list(examples.loader(workers=2))
        assert len(batches) == examples.batches_per_epoch(workers=2)
        digests += read_digests(batches)
    assert sorted(digests) == all_stored(filled_store)


def test_persistent_workers_follow_set_epoch(filled_store: Path) -> None:
    examples = dataset.open(str(filled_store)).examples(batch_size=4)
    loader = examples.loader(workers=2, persistent_workers=True)
    first = read_digests(loader)
    again = read_digests(loader)
    examples.set_epoch(1)
    second = read_digests(loader)
    assert first == again != second
    assert sorted(first) == sorted(second) == all_stored(filled_store)


def test_padded_ranks_make_the_same_number_of_batches(filled_store: Path) -> None:
    open_store = dataset.open(str(filled_store))
    ranks = [open_store.examples(batch_size=4, rank=rank, ranks=7, padded=True) for rank in range(7)]
    batches = [list(examples) for examples in ranks]
    digests = [read_digests(rank_batches) for rank_batches in batches]
    assert {len(rank_batches) for rank_batches in batches} == {2} == {rank.batches_per_epoch() for rank in ranks}
    assert {len(rank_digests) for rank_digests in digests} == {9}
    assert set(all_stored(filled_store)) == {digest for rank_digests in digests for digest in rank_digests}


def test_pairs_hold_the_clean_image_of_every_adversarial_one(filled_store: Path) -> None:
    originals = stored_digests(filled_store, "original")
    for batch in dataset.open(str(filled_store)).examples(attacks=["gnp+mi"], pairs=True):
        clean = [codec.pixels_sha256(pixels) for pixels in batch["clean"]]
        assert clean == [originals[key, ""] for key in batch["keys"]]
        moved = (batch["images"].int() - batch["clean"].int()).abs().amax(dim=(1, 2, 3))
        assert (moved <= 8).all()
        assert (moved > 0).all()


@pytest.mark.parametrize(("clean", "expected"), [(0.5, 60), (0.2, 15), (0.8, 240)])
def test_clean_images_are_mixed_in_at_their_share(filled_store: Path, clean: float, expected: int) -> None:
    batches = list(dataset.open(str(filled_store)).examples(clean=clean))
    counts = Counter(bool(adversarial) for batch in batches for adversarial in batch["adversarial"])
    assert counts == {True: 60, False: expected}
    originals = stored_digests(filled_store, "original")
    assert all(originals[key, ""] == digest for key, attack, digest in read_digests(batches) if not attack)


def test_attacks_are_weighted(filled_store: Path) -> None:
    examples = dataset.open(str(filled_store)).examples(weights={"noise": 0.5, "gnp+mi": 2})
    counts = Counter(attack.rpartition("-")[0] for _, attack, _ in read_digests(examples))
    assert counts == {"noise": 15, "gnp-mi": 60}
    with pytest.raises(RecipeError, match=r"weights: 'gpn' is none of the attacks that were chosen: gnp-mi-"):
        dataset.open(str(filled_store)).examples(weights={"gpn": 1})
    full = next(attack for _, attack, _ in read_digests(examples) if attack.startswith("noise"))
    with pytest.raises(RecipeError, match=rf"weights: {full} is given 2: 1, 2; give it one"):
        dataset.open(str(filled_store)).examples(weights={"noise": 1, full: 2})


def test_a_damaged_object_is_an_error_that_names_it(store: Path) -> None:
    victim = sorted((store / "shards" / "adversarial").rglob("*.tar"))[0]
    data = bytearray(victim.read_bytes())
    data[700] ^= 1
    victim.write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"{victim.name}: damaged"):
        list(dataset.open(str(store)).examples())


def test_forked_workers_are_refused(filled_store: Path) -> None:
    examples = dataset.open(str(filled_store)).examples()
    with pytest.raises(RecipeError, match="its workers were forked"):
        list(DataLoader(examples, batch_size=None, num_workers=1, multiprocessing_context="fork"))


def test_settings_of_the_mix_reach_it_and_have_its_defaults(filled_store: Path) -> None:
    settings = {
        "batch_size": 5,
        "pairs": True,
        "clean": 0.0,
        "weights": {"noise": 2.0},
        "seed": 7,
        "shuffled": False,
        "parts_at_once": 2,
    }
    assert settings.keys() == inspect.signature(Mix).parameters.keys()
    assert dataset.open(str(filled_store)).examples(**settings).mix == Mix(**settings)  # type: ignore[arg-type]
    assert dataset.open(str(filled_store)).examples().mix == Mix()
