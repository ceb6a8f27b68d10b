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
from pipeline.maintenance import garbage
from pipeline.maintenance.finalize import finalize
from pipeline.maintenance.garbage import Garbage
from pipeline.maintenance.verify import audit
from pipeline.storage import Storage
from tests.maintenance.stores import fill_store
from tests.samples import attack, sample, tiny_job, write_shard

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@pytest.fixture
def ledger(storage: Storage, sound_objects: dict[str, bytes]) -> Ledger:
    for key, data in sound_objects.items():
        storage.put(key, data)
    return Ledger(storage)


@pytest.fixture
def old(tmp_path: Path, sound_objects: dict[str, bytes]) -> Ledger:
    """A store in a folder, where objects can be given an age; all are two days old."""
    storage = Storage(str(tmp_path / "old"), create=True)
    for key, data in sound_objects.items():
        storage.put(key, data)
    age(storage, sound_objects, 2 * DAY_S)
    return Ledger(storage)


def age(storage: Storage, keys: Iterable[str], age_s: float) -> None:
    for key in keys:
        os.utime(storage.url_of(key), (time.time() - age_s,) * 2)


def keys(listed: Iterable[Garbage]) -> set[str]:
    return {item.key for item in listed}


def all_keys(ledger: Ledger) -> set[str]:
    return {stored.key for stored in ledger.storage.list()}


def data_of(ledger: Ledger, kind: str) -> list[str]:
    return [marker.object for marker in ledger.read_markers(sorted(ledger.list_units(kind)))]


def with_hash(key: str, digest: str) -> str:
    """Another data object of the same unit, as a writer with other bytes leaves it."""
    stem, _, extension = key.rpartition(".")
    return f"{stem.rpartition('-')[0]}-{digest:0>16}.{extension}"


def test_a_sound_store_has_no_garbage(ledger: Ledger) -> None:
    finalize(ledger)
    assert garbage.find(ledger, age_s=0) == []


def test_data_without_a_marker_is_garbage_once_it_is_old(old: Ledger) -> None:
    orphan = with_hash(data_of(old, "adversarial")[0], "abc")
    old.storage.put(orphan, b"orphan")
    assert garbage.find(old, age_s=DAY_S) == []
    age(old.storage, [orphan], 2 * DAY_S)
    assert garbage.find(old, age_s=DAY_S) == [Garbage(orphan, 6, "data without a marker")]


@pytest.mark.parametrize("kind", ["original", "adversarial", "clean", "transfer"])
def test_only_the_data_that_the_marker_names_stays(ledger: Ledger, kind: str) -> None:
    before = all_keys(ledger)
    lost = {with_hash(key, digest) for key in data_of(ledger, kind) for digest in ("0", "f" * 16)}
    for key in lost:
        ledger.storage.put(key, b"of a slower writer")
    listed = garbage.find(ledger, age_s=0)
    assert keys(listed) == lost
    assert garbage.remove(ledger, listed, age_s=0) == len(lost)
    assert all_keys(ledger) == before
    assert audit(ledger).problems == []


def test_data_without_a_marker_is_garbage_and_data_of_a_damaged_marker_is_not(ledger: Ledger) -> None:
    lost, damaged = sorted(ledger.list_units("transfer"))[:2]
    objects = [marker.object for marker in ledger.read_markers([lost, damaged])]
    ledger.storage.delete([lost.marker_key])
    ledger.storage.put(damaged.marker_key, b"{")
    ledger.storage.put(with_hash(objects[1], "0"), b"either of the two may be the data")
    assert keys(garbage.find(ledger, age_s=0)) == {objects[0]}


def test_unknown_objects_among_the_data_are_garbage(ledger: Ledger) -> None:
    unknown = {"shards/notes.txt", "results/clean/x.parquet", "shards/original/d/s/00000-of-00001.tar"}
    for key in unknown:
        ledger.storage.put(key, b"?")
    listed = garbage.find(ledger, age_s=0)
    assert (keys(listed), {item.reason for item in listed}) == (unknown, {"nothing that this program writes"})


def test_nothing_is_removed_while_a_run_is_active(ledger: Ledger) -> None:
    orphan = with_hash(data_of(ledger, "clean")[0], "0")
    ledger.storage.put(orphan, b"orphan")
    leases.write_heartbeat(ledger.storage, "busy", plan="p", state="running", counts={})
    listed = garbage.find(ledger, age_s=0)
    with pytest.raises(StorageError, match=r"run busy on .* is at work; wait for its end, or stop it first"):
        garbage.remove(ledger, listed, age_s=0)
    assert orphan in all_keys(ledger)
    leases.write_heartbeat(ledger.storage, "busy", plan="p", state="done", counts={})
    garbage.remove(ledger, listed, age_s=0)
    assert orphan not in all_keys(ledger)


def test_an_object_written_again_after_it_was_listed_stays(old: Ledger) -> None:
    first, second = (with_hash(data_of(old, "clean")[0], digest) for digest in ("1", "2"))
    for key in (first, second):
        old.storage.put(key, b"orphan")
    age(old.storage, [first, second], 2 * DAY_S)
    listed = garbage.find(old, age_s=DAY_S)
    old.storage.put(first, b"orphan")  # a writer has started this unit again and will commit it
    assert garbage.remove(old, listed, age_s=DAY_S) == 1
    assert (first in all_keys(old), second in all_keys(old)) == (True, False)
    assert garbage.remove(old, listed, age_s=0) == 1, "an object that is gone is not counted"


def test_leftovers_of_ended_runs_are_garbage_and_those_of_live_runs_are_not(ledger: Ledger) -> None:
    storage = ledger.storage
    for run, state in (("ended", "failed"), ("busy", "running")):
        leases.write_heartbeat(storage, run, plan="p", state=state, counts={})
    leases.claim(storage, "plan/source/s-0", "ended")
    storage.put("probe/x", b"first")
    storage.put(".scratch/x", b"half a marker")
    leftovers = {"runs/ended.json", "probe/x", ".scratch/x"}
    assert keys(garbage.find(ledger, age_s=0)) == leftovers
    leases.write_heartbeat(storage, "busy", plan="p", state="done", counts={})
    leftovers |= {"runs/busy.json", "claims/plan/source/s-0/00000000.json"}
    listed = garbage.find(ledger, age_s=0)
    assert keys(listed) == leftovers
    assert garbage.find(ledger, age_s=HOUR_S) == []
    assert garbage.remove(ledger, listed, age_s=0) == len(leftovers)
    assert garbage.find(ledger, age_s=0) == []
    assert audit(ledger).problems == []


def test_an_unfinished_version_is_garbage_once_all_its_files_are_old(old: Ledger) -> None:
    for name in ("clean/00000.parquet", "_info.json"):
        old.storage.put(f"versions/half/{name}", b"x")
    age(old.storage, ["versions/half/clean/00000.parquet"], 2 * DAY_S)
    assert garbage.find(old, age_s=DAY_S) == [], "a process may be writing it"
    age(old.storage, ["versions/half/_info.json"], 2 * DAY_S)
    listed = garbage.find(old, age_s=DAY_S)
    assert keys(listed) == {"versions/half/clean/00000.parquet", "versions/half/_info.json"}
    assert garbage.remove(old, listed, age_s=DAY_S) == 2


def test_old_files_of_a_version_that_has_just_been_finished_stay(old: Ledger) -> None:
    version = finalize(old)
    files = {stored.key for stored in old.storage.list(version.folder)}
    age(old.storage, files - {f"{version.folder}/manifest.json"}, 2 * DAY_S)
    assert garbage.find(old, age_s=DAY_S) == []
    old.storage.delete([f"{version.folder}/manifest.json"])
    listed = garbage.find(old, age_s=DAY_S)
    assert keys(listed) == files - {f"{version.folder}/manifest.json"}
    finalize(old)  # finishes it after it was listed as garbage; its old files are as they should be
    assert garbage.remove(old, listed, age_s=DAY_S) == 0
    assert finalize(old) == version


def stored_versions(ledger: Ledger) -> set[str]:
    return {stored.key.split("/")[1] for stored in ledger.storage.list("versions")}


def test_the_newest_versions_and_those_with_readers_are_kept(
    old: Ledger, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    versions = []
    for night in range(5):
        write_shard(tmp_path / str(night) / "in" / f"n-{night}.tar", [sample(100 * (night + 1))])
        fill_store(tiny_job(tmp_path / str(night) / "in", tiny_checkpoint, attacks=(attack("noise"),)), old)
        versions.append(finalize(old).id)
        age(old.storage, [stored.key for stored in old.storage.list("versions")], (10 - night) * DAY_S)
        for before in versions[:-1]:
            files = [stored.key for stored in old.storage.list(f"versions/{before}")]
            age(old.storage, files, (10 - versions.index(before)) * DAY_S)
    old.storage.put_record("training/mine/current.json", {"versions": {"here": versions[1]}}, if_absent=False)
    assert not keys(garbage.find(old, age_s=DAY_S))
    listed = garbage.find(old, age_s=DAY_S, keep_versions=2)
    assert {item.key.split("/")[1] for item in listed} == {versions[0], versions[2]}
    assert listed[0].key.endswith("/manifest.json")
    garbage.remove(old, listed[:1], age_s=DAY_S)
    assert stored_versions(old) == set(versions), "by default all versions are kept"
    garbage.remove(old, listed, age_s=DAY_S, keep_versions=2)
    assert stored_versions(old) == {versions[1], versions[3], versions[4]}
    assert not audit(old).problems


def test_a_manifest_in_a_subfolder_does_not_finish_a_version(old: Ledger) -> None:
    stray = "versions/half/again/manifest.json"
    old.storage.put(stray, b"{}")
    age(old.storage, [stray], 2 * DAY_S)
    assert keys(garbage.find(old, age_s=DAY_S)) == {stray}


def test_unfinished_uploads_of_this_store_alone_are_aborted(s3: dict[str, str]) -> None:
    client, prefix = local_s3.client(s3), uuid.uuid4().hex
    begun = {}
    for name in (prefix, f"{prefix}0"):
        key = f"{name}/shards/x y.tar"
        begun[name] = client.create_multipart_upload(Bucket="demo", Key=key)["UploadId"]
        client.upload_part(Bucket="demo", Key=key, UploadId=begun[name], PartNumber=1, Body=b"x" * 100)
    ledger = Ledger(Storage(f"s3://demo/{prefix}"))
    assert garbage.find(ledger, age_s=HOUR_S) == []
    listed = garbage.find(ledger, age_s=-HOUR_S)  # its clock and that of objects may differ by a moment
    assert listed == [Garbage(f"{prefix}/shards/x y.tar {begun[prefix]}", 0, "an upload that nobody finished", True)]
    assert garbage.remove(ledger, listed, age_s=0) == 1
    assert garbage.find(ledger, age_s=-HOUR_S) == []
    (other,) = garbage.find(Ledger(Storage(f"s3://demo/{prefix}0")), age_s=-HOUR_S)
    assert other.key.endswith(begun[f"{prefix}0"])


def test_collection_beside_writers_removes_nothing_they_commit(ledger: Ledger) -> None:
    """Young data is left alone, so a writer between its data and its marker loses nothing."""
    stop = threading.Event()
    removed: list[int] = []

    def collect() -> None:
        while not stop.is_set():
            removed.append(garbage.remove(ledger, garbage.find(ledger, age_s=HOUR_S), age_s=HOUR_S))

    collector = threading.Thread(target=collect)
    collector.start()
    units = sorted(ledger.list_units("clean"))
    for marker in list(ledger.read_markers(units)):
        data = ledger.read_data(marker)
        for _ in range(3):
            ledger.storage.delete([marker.unit.marker_key, marker.object])
            ledger.commit(marker.unit, data, "parquet", marker.facts)
    stop.set()
    collector.join()
    assert sum(removed) == 0
    assert audit(ledger).problems == []
