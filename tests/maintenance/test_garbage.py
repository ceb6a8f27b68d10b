import os
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import pytest

from infra import local_s3
from pipeline.errors import StorageError
from pipeline.ledger import Ledger, leases
from pipeline.maintenance import finalize, garbage
from pipeline.maintenance.garbage import Garbage
from pipeline.maintenance.verify import audit
from pipeline.storage import Storage
from tests.samples import attack, resolve, sample, tiny_job, write_shard
from tests.stages.test_stages import run_all

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, bytes]:
    """Every object of a sound store: key → bytes."""
    folder = tmp_path_factory.mktemp("pristine")
    write_shard(folder / "in" / "s-0.tar", [sample(index) for index in range(6)])
    ledger = Ledger(Storage(str(folder / "store"), create=True))
    planned = resolve(tiny_job(folder / "in", tiny_checkpoint, attacks=(attack("mi"), attack("noise"))))
    ledger.record_plan(planned.describe())
    run_all(planned, ledger)
    return {item.key: ledger.storage.get(item.key) for item in ledger.storage.list()}


@pytest.fixture
def ledger(storage: Storage, pristine: dict[str, bytes]) -> Ledger:
    for key, data in pristine.items():
        storage.put(key, data)
    return Ledger(storage)


@pytest.fixture
def old(tmp_path: Path, pristine: dict[str, bytes]) -> Ledger:
    """A store in a folder, where things can be given an age; all of it two days old."""
    storage = Storage(str(tmp_path / "old"), create=True)
    for key, data in pristine.items():
        storage.put(key, data)
    age(storage, pristine, 2 * DAY_S)
    return Ledger(storage)


def age(storage: Storage, keys: Iterable[str], age_s: float) -> None:
    for key in keys:
        os.utime(storage.at(key), (time.time() - age_s,) * 2)


def keys(found: Iterable[Garbage]) -> set[str]:
    return {item.key for item in found}


def everything(ledger: Ledger) -> set[str]:
    return {stored.key for stored in ledger.storage.list()}


def data_of(ledger: Ledger, kind: str) -> list[str]:
    return [marker.object for marker in ledger.markers(sorted(ledger.units(kind)))]


def with_hash(key: str, digest: str) -> str:
    """Another data object of the same unit, as a writer with other bytes leaves it."""
    stem, _, extension = key.rpartition(".")
    return f"{stem.rpartition('-')[0]}-{digest:0>16}.{extension}"


def test_a_sound_store_holds_nothing_that_may_go(ledger: Ledger) -> None:
    finalize.finalize(ledger)
    assert garbage.find(ledger, age_s=0) == []


def test_data_without_a_marker_is_found_once_it_is_old(old: Ledger) -> None:
    orphan = with_hash(data_of(old, "adversarial")[0], "abc")
    old.storage.put(orphan, b"orphan")
    assert garbage.find(old, age_s=DAY_S) == []
    age(old.storage, [orphan], 2 * DAY_S)
    assert garbage.find(old, age_s=DAY_S) == [Garbage(orphan, 6, "data without a marker")]


@pytest.mark.parametrize("kind", ["original", "adversarial", "clean", "transfer"])
def test_of_two_data_objects_of_a_unit_the_one_that_its_marker_names_stays(ledger: Ledger, kind: str) -> None:
    before = everything(ledger)
    losers = {with_hash(key, digest) for key in data_of(ledger, kind) for digest in ("0", "f" * 16)}
    for key in losers:
        ledger.storage.put(key, b"of the writer that lost")
    found = garbage.find(ledger, age_s=0)
    assert keys(found) == losers
    assert garbage.remove(ledger, found, age_s=0) == len(losers)
    assert everything(ledger) == before
    assert audit(ledger).problems == []


def test_data_of_a_unit_whose_marker_is_lost_may_go_and_that_of_a_damaged_one_may_not(ledger: Ledger) -> None:
    lost, damaged = sorted(ledger.units("transfer"))[:2]
    objects = [marker.object for marker in ledger.markers([lost, damaged])]
    ledger.storage.delete([lost.marker])
    ledger.storage.put(damaged.marker, b"{")
    ledger.storage.put(with_hash(objects[1], "0"), b"one of the two is the data, who knows which")
    assert keys(garbage.find(ledger, age_s=0)) == {objects[0]}


def test_strangers_among_the_data_are_found(ledger: Ledger) -> None:
    strange = {"shards/notes.txt", "results/clean/x.parquet", "shards/original/d/s/00000-of-00001.tar"}
    for key in strange:
        ledger.storage.put(key, b"?")
    found = garbage.find(ledger, age_s=0)
    assert (keys(found), {item.why for item in found}) == (strange, {"nothing that this program writes"})


def test_nothing_is_removed_while_a_run_is_at_work(ledger: Ledger) -> None:
    orphan = with_hash(data_of(ledger, "clean")[0], "0")
    ledger.storage.put(orphan, b"orphan")
    leases.beat(ledger.storage, "busy", plan="p", state="running", counts={})
    found = garbage.find(ledger, age_s=0)
    with pytest.raises(StorageError, match=r"run busy on .* is at work; wait for its end, or stop it first"):
        garbage.remove(ledger, found, age_s=0)
    assert orphan in everything(ledger)
    leases.beat(ledger.storage, "busy", plan="p", state="done", counts={})
    garbage.remove(ledger, found, age_s=0)
    assert orphan not in everything(ledger)


def test_what_was_written_again_since_it_was_found_stays(old: Ledger) -> None:
    first, second = (with_hash(data_of(old, "clean")[0], digest) for digest in ("1", "2"))
    for key in (first, second):
        old.storage.put(key, b"orphan")
    age(old.storage, [first, second], 2 * DAY_S)
    found = garbage.find(old, age_s=DAY_S)
    old.storage.put(first, b"orphan")  # a writer is at this unit again; its marker comes next
    assert garbage.remove(old, found, age_s=DAY_S) == 1
    assert (first in everything(old), second in everything(old)) == (True, False)
    assert garbage.remove(old, found, age_s=0) == 1, "what is gone is not counted"


def test_what_ended_runs_leave_may_go_and_what_a_live_one_holds_may_not(ledger: Ledger) -> None:
    storage = ledger.storage
    for run, state in (("ended", "failed"), ("busy", "running")):
        leases.beat(storage, run, plan="p", state=state, counts={})
    leases.claim(storage, "plan/source/s-0", "ended")
    storage.put("probe/x", b"first")
    storage.put(".scratch/x", b"half a marker")
    leavings = {"runs/ended.json", "probe/x", ".scratch/x"}
    assert keys(garbage.find(ledger, age_s=0)) == leavings
    leases.beat(storage, "busy", plan="p", state="done", counts={})
    leavings |= {"runs/busy.json", "claims/plan/source/s-0/00000000.json"}
    found = garbage.find(ledger, age_s=0)
    assert keys(found) == leavings
    assert garbage.find(ledger, age_s=HOUR_S) == []
    assert garbage.remove(ledger, found, age_s=0) == len(leavings)
    assert garbage.find(ledger, age_s=0) == []
    assert audit(ledger).problems == []


def test_a_version_that_was_never_finished_may_go_once_all_of_it_is_old(old: Ledger) -> None:
    for name in ("clean/00000.parquet", "_info.json"):
        old.storage.put(f"versions/half/{name}", b"x")
    age(old.storage, ["versions/half/clean/00000.parquet"], 2 * DAY_S)
    assert garbage.find(old, age_s=DAY_S) == [], "somebody may be making it"
    age(old.storage, ["versions/half/_info.json"], 2 * DAY_S)
    found = garbage.find(old, age_s=DAY_S)
    assert keys(found) == {"versions/half/clean/00000.parquet", "versions/half/_info.json"}
    assert garbage.remove(old, found, age_s=DAY_S) == 2


def test_old_files_of_a_version_that_was_finished_just_now_stay(old: Ledger) -> None:
    version = finalize.finalize(old)
    files = {stored.key for stored in old.storage.list(version.key)}
    age(old.storage, files - {f"{version.key}/manifest.json"}, 2 * DAY_S)
    assert garbage.find(old, age_s=DAY_S) == []
    old.storage.delete([f"{version.key}/manifest.json"])
    found = garbage.find(old, age_s=DAY_S)
    assert keys(found) == files - {f"{version.key}/manifest.json"}
    finalize.finalize(old)  # finishes it between the look and the removal, and finds its old files as they should be
    assert garbage.remove(old, found, age_s=DAY_S) == 0
    assert finalize.finalize(old) == version


def versions_there(ledger: Ledger) -> set[str]:
    return {stored.key.split("/")[1] for stored in ledger.storage.list("versions")}


def test_only_the_last_versions_are_kept_and_those_that_are_read(
    old: Ledger, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    made = []
    for night in range(5):
        write_shard(tmp_path / str(night) / "in" / f"n-{night}.tar", [sample(100 * (night + 1))])
        planned = resolve(tiny_job(tmp_path / str(night) / "in", tiny_checkpoint, attacks=(attack("noise"),)))
        old.record_plan(planned.describe())
        run_all(planned, old)
        made.append(finalize.finalize(old).id)
        age(old.storage, [stored.key for stored in old.storage.list("versions")], (10 - night) * DAY_S)
        for before in made[:-1]:
            own = [stored.key for stored in old.storage.list(f"versions/{before}")]
            age(old.storage, own, (10 - made.index(before)) * DAY_S)
    old.storage.put_record("training/mine/current.json", {"versions": {"here": made[1]}}, once=False)
    assert not keys(garbage.find(old, age_s=DAY_S))
    found = garbage.find(old, age_s=DAY_S, keep_versions=2)
    assert {item.key.split("/")[1] for item in found} == {made[0], made[2]}
    assert found[0].key.endswith("/manifest.json")
    garbage.remove(old, found[:1], age_s=DAY_S)
    assert versions_there(old) == set(made), "without saying so, all are kept"
    garbage.remove(old, found, age_s=DAY_S, keep_versions=2)
    assert versions_there(old) == {made[1], made[3], made[4]}
    assert not audit(old).problems


def test_a_manifest_deeper_down_finishes_no_version(old: Ledger) -> None:
    stray = "versions/half/again/manifest.json"
    old.storage.put(stray, b"{}")
    age(old.storage, [stray], 2 * DAY_S)
    assert keys(garbage.find(old, age_s=DAY_S)) == {stray}


def test_uploads_that_nobody_finished_are_found_and_ended_and_no_other_stores(s3: dict[str, str]) -> None:
    client, prefix = local_s3.client(s3), uuid.uuid4().hex
    begun = {}
    for name in (prefix, f"{prefix}0"):
        key = f"{name}/shards/x y.tar"
        begun[name] = client.create_multipart_upload(Bucket="demo", Key=key)["UploadId"]
        client.upload_part(Bucket="demo", Key=key, UploadId=begun[name], PartNumber=1, Body=b"x" * 100)
    ledger = Ledger(Storage(f"s3://demo/{prefix}"))
    assert garbage.find(ledger, age_s=HOUR_S) == []
    found = garbage.find(ledger, age_s=-HOUR_S)  # its clock and that of objects may differ by a moment
    assert found == [Garbage(f"{prefix}/shards/x y.tar {begun[prefix]}", 0, "an upload that nobody finished", True)]
    assert garbage.remove(ledger, found, age_s=0) == 1
    assert garbage.find(ledger, age_s=-HOUR_S) == []
    (other,) = garbage.find(Ledger(Storage(f"s3://demo/{prefix}0")), age_s=-HOUR_S)
    assert other.key.endswith(begun[f"{prefix}0"])


def test_a_collection_beside_writers_harms_nothing_that_they_commit(ledger: Ledger) -> None:
    """Young data is left alone, so a writer between its data and its marker loses nothing."""
    stop = threading.Event()
    removed: list[int] = []

    def collect() -> None:
        while not stop.is_set():
            removed.append(garbage.remove(ledger, garbage.find(ledger, age_s=HOUR_S), age_s=HOUR_S))

    collector = threading.Thread(target=collect)
    collector.start()
    units = sorted(ledger.units("clean"))
    for marker in list(ledger.markers(units)):
        data = ledger.read(marker)
        for _ in range(3):
            ledger.storage.delete([marker.unit.marker, marker.object])
            ledger.commit(marker.unit, data, "parquet", marker.facts)
    stop.set()
    collector.join()
    assert sum(removed) == 0
    assert audit(ledger).problems == []
