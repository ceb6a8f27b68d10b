import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline import dataset
from pipeline.data import codec, parts
from pipeline.dataset import snapshot
from pipeline.dataset.examples import Batch, Examples, Mix
from pipeline.dataset.snapshot import Choice
from pipeline.errors import IntegrityError, MissingError, RecipeError
from pipeline.ledger import Ledger
from pipeline.maintenance import finalize
from pipeline.storage import Storage, sha256
from pipeline.storage.cache import Cache
from tests.conftest import ROOT
from tests.maintenance.test_finalize import make
from tests.samples import attack, sample, tiny_job, write_shard

IMAGES, ATTACKS = 30, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """30 images of two shards in parts of 4 under two attacks, scored by two targets, one of which is the source."""
    folder = tmp_path_factory.mktemp("made")
    for shard in range(2):
        write_shard(folder / "in" / f"s-{shard}.tar", [sample(100 * shard + index) for index in range(15)])
    attacks = attack("noise", epsilon=Fraction(2, 255)), attack("gnp+mi", name="gnp+mi")
    make(tiny_job(folder / "in", tiny_checkpoint, attacks=attacks), Ledger(Storage(f"{folder}/store", create=True)))
    return folder / "store"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "store")


def stored(store: Path, kind: str = "adversarial") -> dict[tuple[str, str], str]:
    """(Key, attack) → digest of its pixels, read another way."""
    ledger = Ledger(Storage(str(store)))
    found = {}
    for marker in ledger.markers(ledger.units(kind)):
        images = parts.read(ledger.read(marker), name=marker.object)
        for key, pixels in zip(images.keys, images.pixels, strict=True):
            found[key, marker.unit.attack] = codec.pixels_sha256(pixels)
    return found


def seen(batches: Any) -> list[tuple[str, str, str]]:
    """(key, attack, digest of the pixels), in order."""
    return [
        (key, attack, codec.pixels_sha256(pixels))
        for batch in batches
        for key, attack, pixels in zip(batch["keys"], batch["attacks"], batch["images"], strict=True)
    ]


def as_stored(store: Path) -> list[tuple[str, str, str]]:
    return sorted((key, attack, digest) for (key, attack), digest in stored(store).items())


def test_an_epoch_has_every_image_once_as_it_is_stored(made: Path) -> None:
    examples = dataset.open(str(made)).examples(batch_size=7)
    batches = list(examples)
    assert sorted(seen(batches)) == as_stored(made)
    assert [len(batch["keys"]) for batch in batches] == [7] * 8 + [4]
    assert examples.batches_per_epoch() == 9
    assert examples.images_per_epoch() == IMAGES * ATTACKS
    first: Batch = batches[0]
    assert (first["images"].shape, first["images"].dtype) == ((7, 3, 32, 32), torch.uint8)
    assert first["labels"].tolist() == [int(key[-5:]) % 10 for key in first["keys"]]
    assert first["adversarial"].all()
    assert {name.rpartition("-")[0] for name in first["sources"] + first["datasets"]} == {"tiny"}


@pytest.mark.timeout(600)
def test_two_ranks_of_two_workers_see_each_image_exactly_once(made: Path) -> None:
    found = []
    for rank in range(2):
        examples = dataset.open(str(made)).examples(batch_size=4, rank=rank, ranks=2)
        batches = list(examples.loader(workers=2))
        assert len(batches) == examples.batches_per_epoch(workers=2)
        found += seen(batches)
    assert sorted(found) == as_stored(made)


def test_workers_that_live_on_are_told_of_the_next_epoch(made: Path) -> None:
    examples = dataset.open(str(made)).examples(batch_size=4)
    loader = examples.loader(workers=2, persistent_workers=True)
    first = seen(loader)
    again = seen(loader)
    examples.set_epoch(1)
    second = seen(loader)
    assert first == again != second
    assert sorted(first) == sorted(second) == as_stored(made)


def test_padded_ranks_make_equally_many_batches(made: Path) -> None:
    open_store = dataset.open(str(made))
    examples = [open_store.examples(batch_size=4, rank=rank, ranks=7, padded=True) for rank in range(7)]
    batches = [list(each) for each in examples]
    assert {len(each) for each in batches} == {3} == {each.batches_per_epoch() for each in examples}
    assert {len(seen(each)) for each in batches} == {9}
    assert set(as_stored(made)) == {place for each in batches for place in seen(each)}


def test_pairs_hold_the_clean_image_of_each(made: Path) -> None:
    originals = stored(made, "original")
    for batch in dataset.open(str(made)).examples(attacks=["gnp+mi"], pairs=True):
        clean = [codec.pixels_sha256(pixels) for pixels in batch["clean"]]
        assert clean == [originals[key, ""] for key in batch["keys"]]
        moved = (batch["images"].int() - batch["clean"].int()).abs().amax(dim=(1, 2, 3))
        assert (moved <= 8).all()
        assert (moved > 0).all()


@pytest.mark.parametrize(("clean", "expected"), [(0.5, 60), (0.2, 15), (0.8, 240)])
def test_clean_images_are_mixed_in_at_a_ratio(made: Path, clean: float, expected: int) -> None:
    batches = list(dataset.open(str(made)).examples(clean=clean))
    found = Counter(bool(adversarial) for batch in batches for adversarial in batch["adversarial"])
    assert found == {True: 60, False: expected}
    originals = stored(made, "original")
    assert all(originals[key, ""] == digest for key, attack, digest in seen(batches) if not attack)


def test_attacks_are_weighted(made: Path) -> None:
    examples = dataset.open(str(made)).examples(weights={"noise": 0.5, "gnp+mi": 2})
    found = Counter(attack.rpartition("-")[0] for _, attack, _ in seen(examples))
    assert found == {"noise": 15, "gnp-mi": 60}
    with pytest.raises(RecipeError, match=r"weights: 'gpn' is none of the attacks that were chosen: gnp-mi-"):
        dataset.open(str(made)).examples(weights={"gpn": 1})
    full = next(attack for _, attack, _ in seen(examples) if attack.startswith("noise"))
    with pytest.raises(RecipeError, match=rf"weights: {full} is given 2: 1, 2; give it one"):
        dataset.open(str(made)).examples(weights={"noise": 1, full: 2})


def test_a_choice_by_attack_source_data_and_epsilon(made: Path) -> None:
    open_store = dataset.open(str(made))
    by_name = open_store.examples(attacks=["noise"], sources=["tiny"], datasets=["tiny"])
    by_epsilon = open_store.examples(epsilon=2 / 255)
    assert open_store.examples(attacks="noise", epsilon="2/255").snapshot.id == by_epsilon.snapshot.id
    assert {attack.rpartition("-")[0] for _, attack, _ in seen(by_name)} == {"noise"}
    assert by_name.snapshot.id == by_epsilon.snapshot.id
    for wrong in ({"attacks": ["no"]}, {"sources": ["no"]}, {"datasets": ["no"]}, {"success": "no"}):
        ((what, _),) = wrong.items()
        with pytest.raises(RecipeError, match=rf"^{what}: 'no' is n.*: .*tiny|noise"):
            open_store.examples(**wrong)
    with pytest.raises(RecipeError, match=r"epsilon: 1/255 is none of this store's: 2/255, 8/255"):
        open_store.examples(epsilon="1/255")


def test_what_two_snapshots_have_in_common_are_originals_of_the_same_parts(
    made: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """In whatever store; another shard's are others."""
    write_shard(tmp_path / "in" / "s-1.tar", [sample(100 + index) for index in range(15)])
    write_shard(tmp_path / "in" / "s-2.tar", [sample(200 + index) for index in range(6)])
    other = Ledger(Storage(str(tmp_path / "store"), create=True))
    make(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"),)), other)
    noise, all_, elsewhere = (
        snapshot.take(ledger, snapshot.Choice(attacks=attacks))
        for ledger, attacks in ((Ledger(Storage(str(made))), ["noise"]), (Ledger(Storage(str(made))), []), (other, []))
    )
    assert (snapshot.shared(noise, all_), snapshot.shared(all_, noise)) == (IMAGES, IMAGES)
    assert (snapshot.shared(noise, elsewhere), snapshot.shared(elsewhere, noise)) == (15, 15)


def test_a_choice_by_success_is_what_the_results_say(made: Path) -> None:
    open_store = dataset.open(str(made))
    clean = {row["key"]: row["prediction"] == row["label"] for row in open_store.results("clean").to_pylist()}
    fooled = {
        (row["key"], row["attack_id"])
        for row in open_store.results().to_pylist()
        if clean[row["key"]] and row["prediction"] != row["label"]
    }
    assert fooled
    for success in ("any", "all", "tiny"):
        assert {place[:2] for place in seen(open_store.examples(success=success))} == fooled
    flagged = list(open_store.examples(success="tiny", only_successful=False))
    assert sorted(seen(flagged)) == as_stored(made)
    mixed = open_store.examples(success="tiny", only_successful=False, clean=0.9, batch_size=1)
    assert all(len(batch["success"]) == 1 for batch in mixed), "of clean images alone too"
    said = {
        (key, attack)
        for batch in flagged
        for key, attack, success in zip(batch["keys"], batch["attacks"], batch["success"].tolist(), strict=True)
        if success
    }
    assert said == fooled


def test_a_growing_store_does_not_change_an_epoch(store: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ledger = Ledger(Storage(str(store)))
    examples = dataset.open(str(store)).examples()
    finalize.finalize(ledger)
    before, expected = examples.snapshot.id, as_stored(store)
    write_shard(tmp_path / "more" / "t.tar", [sample(900 + index) for index in range(5)])
    make(tiny_job(tmp_path / "more", tiny_checkpoint, attacks=(attack("noise", epsilon=Fraction(2, 255)),)), ledger)
    assert sorted(seen(examples)) == expected
    assert len(seen(dataset.open(str(store)).examples())) == 65
    for version in ("latest", json.loads((store / "latest.json").read_text())["version"]):
        assert dataset.open(str(store)).examples(version=version).snapshot.id == before
    with pytest.raises(MissingError, match="no version 'tomorrow' is finalized here"):
        dataset.open(str(store)).examples(version="tomorrow")


def test_a_manifest_that_is_not_its_version_is_refused(store: Path) -> None:
    version = finalize.finalize(Ledger(Storage(str(store))))
    path = store / version.key / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["objects"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=r"manifest.json: not a manifest \(its objects are not those"):
        dataset.open(str(store)).examples(version="latest")


def test_a_damaged_object_raises_and_is_named(store: Path) -> None:
    victim = sorted((store / "shards" / "adversarial").rglob("*.tar"))[0]
    data = bytearray(victim.read_bytes())
    data[700] ^= 1
    victim.write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"{victim.name}: damaged"):
        list(dataset.open(str(store)).examples())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(made: Path, workers: int) -> None:
    def loader(epoch: int = 0) -> StatefulDataLoader[Batch]:
        examples = dataset.open(str(made)).examples(batch_size=4, clean=0.3)
        if epoch:
            examples.set_epoch(epoch)
        told = {"multiprocessing_context": "forkserver"} if workers else {}
        return StatefulDataLoader(examples, batch_size=None, num_workers=workers, **told)

    whole = seen(loader(epoch=3))
    begun, state = loader(epoch=3), {}
    head = []
    for number, batch in enumerate(begun):
        head += seen([batch])
        if number == 6:
            state = begun.state_dict()
            break
    resumed = loader()
    resumed.load_state_dict(state)
    assert head + seen(resumed) == whole


def test_a_state_of_something_else_is_refused(made: Path) -> None:
    state = dataset.open(str(made)).examples(seed=1).state_dict()
    with pytest.raises(RecipeError, match=r"state_dict: made with snapshot .* seed=1.*, this is .* seed=0"):
        dataset.open(str(made)).examples().load_state_dict(state)


def test_after_a_resumed_epoch_the_next_one_is_whole(made: Path) -> None:
    examples = dataset.open(str(made)).examples()
    examples.load_state_dict({**examples.state_dict(), "position": 50})
    assert len(seen(examples)) == 10
    assert len(seen(examples)) == 60


KILLED = """
import sys
from pipeline import codec, dataset
from torchdata.stateful_dataloader import StatefulDataLoader
import json, pathlib

def main(store, state, log):
    examples = dataset.open(store).examples(batch_size=4, seed=7)
    loader = StatefulDataLoader(examples, batch_size=None, num_workers=2, multiprocessing_context="forkserver")
    if pathlib.Path(state).exists():
        loader.load_state_dict(json.loads(pathlib.Path(state).read_text()))
    with open(log, "a") as out:
        for number, batch in enumerate(loader):
            print(json.dumps([batch["keys"], batch["attacks"]]), file=out, flush=True)
            pathlib.Path(state).write_text(json.dumps(loader.state_dict()))
            print("batch", flush=True)
            if len(sys.argv) > 4 and number == 4:
                sys.stdin.read()

if __name__ == "__main__":
    main(*sys.argv[1:4])
"""


@pytest.mark.journey
def test_a_training_process_that_is_killed_goes_on_with_the_same_sequence(made: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(KILLED)

    def command(name: str, *more: str) -> list[str]:
        return [sys.executable, str(script), str(made), str(tmp_path / f"{name}.json"), str(tmp_path / name), *more]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command("whole"), env=environment, check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen(
        command("killed", "wait"), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline() == "batch\n"
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 3, "two workers, and the server that forked them"
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive, "its loader's workers do not outlive it"
    subprocess.run(command("killed"), env=environment, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "killed").read_text() == (tmp_path / "whole").read_text()


def test_forked_workers_are_refused_where_they_would_hang(made: Path) -> None:
    examples = dataset.open(str(made)).examples()
    with pytest.raises(RecipeError, match="its workers were forked"):
        list(DataLoader(examples, batch_size=None, num_workers=1, multiprocessing_context="fork"))


def test_what_is_kept_on_this_machine_is_not_fetched_again(store: Path, tmp_path: Path) -> None:
    examples = dataset.open(str(store)).examples(cache=tmp_path / "cache", pairs=True)
    first = seen(examples)
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert kept == {sha256(path.read_bytes()) for path in (store / "shards").rglob("*.tar")}
    shutil.rmtree(store / "shards")
    assert seen(examples) == first


def test_what_is_wrong(made: Path) -> None:
    for settings, message in (
        ({"batch_size": 0}, "batch_size = 0"),
        ({"parts_at_once": 0}, "parts_at_once = 0"),
        ({"clean": 1.0}, "clean = 1.0"),
        ({"clean": 0.5, "pairs": True}, "clean, pairs"),
        ({"weights": {"noise": -1}}, "weights: noise = -1"),
        ({"seed": -1}, "seed = -1"),
        ({"rank": 2, "ranks": 2}, "rank = 2 of 2: from 0 to 1"),
        ({"rank": 3}, "rank, ranks: say both, or neither"),
        ({"ranks": 8}, "rank, ranks: say both, or neither"),
        ({"epsilon": "abc"}, "epsilon: 'abc' is no number"),
        ({"epsilon": "8/0"}, "epsilon: '8/0' is no number"),
        ({"epsilon": float("nan")}, "epsilon: nan is no number"),
    ):
        with pytest.raises(RecipeError, match=message):
            dataset.open(str(made)).examples(**settings)


def test_cache_keeps_within_its_limit_and_lets_the_oldest_go(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "store"), create=True)
    objects = [bytes([number]) * 100 for number in range(5)]
    for number, data in enumerate(objects):
        storage.put(str(number), data)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mine.txt").write_text("x" * 1000)
    (tmp_path / "cache" / "dangling").symlink_to("nowhere")
    cache = Cache(tmp_path / "cache", limit_bytes=320)

    def read(number: int) -> None:
        assert cache.read(storage, str(number), sha256(objects[number])) == objects[number]

    for number in (0, 1, 2):
        read(number)
    for number in (0, 1, 2):
        os.utime(cache.folder / sha256(objects[number]), (1000 + number, 1000 + number))
    read(0)
    read(3)
    kept = {path.name for path in cache.folder.iterdir()}
    assert kept == {*(sha256(objects[number]) for number in (0, 2, 3)), "mine.txt", "dangling"}
    damaged = cache.folder / sha256(objects[0])
    damaged.write_bytes(b"what?")
    read(0)
    assert damaged.read_bytes() == objects[0]
    small = Cache(tmp_path / "small", limit_bytes=10)
    assert small.read(storage, "0", sha256(objects[0])) == objects[0]
    assert not small.folder.exists()


def test_processes_that_share_a_cache_that_is_too_small_all_end(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline import dataset\n"
        "examples = dataset.open(sys.argv[1]).examples(cache=sys.argv[2], cache_bytes=60_000)\n"
        "for _ in range(10): assert sum(len(batch['keys']) for batch in examples) == 60\n"
    )
    command = [sys.executable, "-c", code, str(made), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in running] == ["", "", ""]
    assert all(len(path.name) == 64 for path in (tmp_path / "cache").iterdir()), "nothing half written is left"


def test_a_cache_that_cannot_be_written_is_done_without(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert len(seen(dataset.open(str(made)).examples(cache=tmp_path / "file"))) == 60
    assert "going on without it" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_after_a_checkpoint_at_the_end_of_an_epoch_the_next_one_is_whole(made: Path, workers: int) -> None:
    def loader() -> tuple[Examples, StatefulDataLoader[Batch]]:
        examples = dataset.open(str(made)).examples(batch_size=8)
        told = {"multiprocessing_context": "forkserver"} if workers else {}
        return examples, StatefulDataLoader(examples, batch_size=None, num_workers=workers, **told)

    examples, first = loader()
    examples.set_epoch(0)
    list(first)
    state = first.state_dict()
    examples.set_epoch(1)
    expected = seen(first)
    for before in (True, False):
        examples, resumed = loader()
        if before:
            examples.set_epoch(1)
        resumed.load_state_dict(state)
        if not before:
            examples.set_epoch(1)
        assert seen(resumed) == expected


def test_a_state_is_of_the_epoch_that_is_being_read(made: Path) -> None:
    examples = dataset.open(str(made)).examples(batch_size=8)
    examples.set_epoch(0)
    whole, reading = seen(examples), iter(examples)
    head = seen([next(reading), next(reading)])
    examples.set_epoch(1)
    state = examples.state_dict()
    assert (state["epoch"], state["position"]) == (0, 16)
    resumed = dataset.open(str(made)).examples(batch_size=8)
    resumed.load_state_dict(state)
    assert head + seen(resumed) == whole
    assert len(seen(reading)) == 44
    assert examples.state_dict() == {**state, "epoch": 1, "position": 0}, "what comes next"
    iter(examples)
    assert examples.state_dict() == {**state, "epoch": 1, "position": 0}


def test_what_nobody_has_scored_is_kept_where_all_are(store: Path) -> None:
    for marker in (store / "markers" / "transfer").rglob("s-1/*.json"):
        marker.unlink()
    flagged = dataset.open(str(store)).examples(success="any", only_successful=False)
    assert len(seen(flagged)) == 60
    assert flagged.snapshot.id != dataset.open(str(store)).examples().snapshot.id
    shutil.rmtree(store / "markers" / "transfer")
    with pytest.raises(RecipeError, match="no target has been scored on these images; run generate or score first"):
        dataset.open(str(store)).examples(success="tiny")


def test_a_version_is_read_whole_though_its_markers_are_gone(store: Path) -> None:
    finalize.finalize(Ledger(Storage(str(store))))
    expected = dataset.open(str(store)).examples(success="any").snapshot.id
    for kind in ("transfer", "clean"):
        shutil.rmtree(store / "markers" / kind)
    assert dataset.open(str(store)).examples(success="any", version="latest").snapshot.id == expected


def test_a_manifest_whose_units_are_exchanged_is_refused(store: Path) -> None:
    version = finalize.finalize(Ledger(Storage(str(store))))
    path = store / version.key / "manifest.json"
    manifest = json.loads(path.read_text())
    attacks = sorted({entry["unit"]["attack"] for entry in manifest["objects"]} - {""})
    for entry in manifest["objects"]:
        if entry["kind"] == "adversarial":
            entry["unit"]["attack"] = attacks[1 - attacks.index(entry["unit"]["attack"])]
    path.write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=r"is not what markers/adversarial/.* stands for"):
        dataset.open(str(store)).examples(version="latest")


def test_several_stores_are_read_as_one(made: Path, store: Path) -> None:
    taken = [
        snapshot.take(Ledger(Storage(str(path))), Choice(attacks=[attack]))
        for path, attack in ((made, "noise"), (store, "gnp+mi"))
    ]
    examples = Examples(snapshot.together(taken), Mix(clean=0.5))
    found = seen(examples)
    originals = stored(made, "original")
    assert sorted(place for place in found if place[1]) == as_stored(made)
    assert sum(not attack for _, attack, _ in found) == 60
    assert all(originals[key, ""] == digest for key, attack, digest in found if not attack)
