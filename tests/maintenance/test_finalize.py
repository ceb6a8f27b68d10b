import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Ledger
from pipeline.maintenance import finalize as finalize_module
from pipeline.maintenance import verify
from pipeline.maintenance.finalize import Version, finalize
from pipeline.plan.job import Job
from pipeline.results import schema
from pipeline.storage import Storage
from tests.maintenance.stores import ATTACKS, IMAGES, ROWS, compacted_tables, fill_store, new_ledger, path_of
from tests.samples import attack


def file_stats(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """Every object with its inode and time, which change when it is written again."""
    stats = {item.key: path_of(ledger, item.key).stat() for item in ledger.storage.list()}
    return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in stats.items()}


def contents(ledger: Ledger) -> dict[str, bytes]:
    """Every object that finalize writes."""
    keys = [item.key for item in ledger.storage.list("versions")]
    return {key: ledger.storage.get(key) for key in [*keys, "_info.json", "README.md", "latest.json"]}


def read_manifest(ledger: Ledger, version: Version) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(ledger.storage.get(f"{version.folder}/manifest.json"))
    return manifest


def test_a_version_has_every_committed_row_and_lists_every_object(ledger: Ledger) -> None:
    version = finalize(ledger)
    assert (version.rows, version.images, version.missing) == (sum(ROWS.values()), IMAGES * ATTACKS, 0)
    for kind, rows in ROWS.items():
        (table,) = compacted_tables(ledger, version, kind)
        units = sorted(ledger.list_units(kind))
        committed = [schema.read_parquet(ledger.read_data(marker), name="x") for marker in ledger.read_markers(units)]
        assert table.num_rows == rows
        assert table.to_pylist() == [row for committed_table in committed for row in committed_table.to_pylist()]
    manifest = read_manifest(ledger, version)
    objects = {item.key for folder in ("shards", "results") for item in ledger.storage.list(folder)}
    assert {entry["object"] for entry in manifest["objects"]} == objects
    assert version.objects == len(objects) == len(manifest["objects"])
    for entry in manifest["objects"]:
        ledger.storage.get(entry["object"], sha256_hex=entry["sha256"])
    assert (manifest["complete"], manifest["rows"]) == (True, ROWS)


def test_latest_json_names_the_version_and_the_manifest_its_files(ledger: Ledger) -> None:
    version = finalize(ledger)
    latest = json.loads(ledger.storage.get("latest.json"))
    assert (latest["version"], latest["manifest"]) == (version.id, f"{version.folder}/manifest.json")
    ledger.storage.get(latest["manifest"], sha256_hex=latest["manifest_sha256"])
    listed = {entry["name"]: entry for entry in read_manifest(ledger, version)["files"]}
    stored_sizes = {
        item.key.removeprefix(f"{version.folder}/"): item.size_bytes for item in ledger.storage.list(version.folder)
    }
    del stored_sizes["manifest.json"]
    assert {name: entry["size_bytes"] for name, entry in listed.items()} == stored_sizes
    for name, entry in listed.items():
        assert hashlib.sha256(ledger.storage.get(f"{version.folder}/{name}")).hexdigest() == entry["sha256"]
    for name in ("_info.json", "README.md"):
        assert ledger.storage.get(name) == ledger.storage.get(f"{version.folder}/{name}")


def test_finalizing_again_writes_nothing(ledger: Ledger) -> None:
    first = finalize(ledger)
    before = file_stats(ledger)
    assert finalize(ledger) == first
    assert file_stats(ledger) == before


def test_the_same_commits_in_another_store_give_the_same_bytes(ledger: Ledger, job: Job, tmp_path: Path) -> None:
    other = new_ledger(tmp_path / "other")
    fill_store(job, other, workers=6)
    assert finalize(other) == finalize(ledger)
    assert contents(other) == contents(ledger)


def test_another_commit_makes_another_version_and_keeps_the_first(ledger: Ledger, job: Job) -> None:
    first = finalize(ledger)
    before = {key: data for key, data in contents(ledger).items() if key.startswith("versions/")}
    fill_store(replace(job, attacks=(*job.attacks, attack("i"))), ledger)
    second = finalize(ledger)
    assert second.id != first.id
    assert second.images == first.images + IMAGES
    assert before.items() <= contents(ledger).items()
    assert json.loads(ledger.storage.get("latest.json"))["version"] == second.id


def test_an_older_version_never_replaces_a_newer_one_as_latest(
    ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes finalize at once; the one that has seen fewer commits writes its files last."""
    write, newer = finalize_module._write, list[Version]()

    def slow_write(*arguments: Any) -> None:
        write(*arguments)
        monkeypatch.setattr(finalize_module, "_write", write)
        fill_store(replace(job, attacks=(*job.attacks, attack("i"))), ledger)
        newer.append(finalize(ledger))

    monkeypatch.setattr(finalize_module, "_write", slow_write)
    assert [finalize(ledger)] == newer
    assert json.loads(ledger.storage.get("latest.json"))["version"] == newer[0].id


def test_a_damaged_result_is_an_error_and_makes_no_version(ledger: Ledger) -> None:
    (marker, *_) = ledger.read_markers(sorted(ledger.list_units("transfer")))
    path_of(ledger, marker.object).write_bytes(ledger.read_data(marker)[:-1] + b"\0")
    with pytest.raises(IntegrityError, match="damaged"):
        finalize(ledger)
    assert not [item for item in ledger.storage.list() if "manifest" in item.key or item.key == "latest.json"]


def test_a_result_lost_after_finalizing_is_an_error(ledger: Ledger) -> None:
    finalize(ledger)
    (marker, *_) = ledger.read_markers(sorted(ledger.list_units("clean")))
    path_of(ledger, marker.object).unlink()
    with pytest.raises(MissingError, match="no such object"):
        finalize(ledger)


def test_a_damaged_version_is_an_error_and_is_rewritten_once_its_manifest_is_removed(ledger: Ledger) -> None:
    version = finalize(ledger)
    before = contents(ledger)
    damaged = path_of(ledger, f"{version.folder}/clean/00000.parquet")
    damaged.write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"damaged.*or remove this manifest and finalize again"):
        finalize(ledger)
    path_of(ledger, f"{version.folder}/manifest.json").unlink()
    assert finalize(ledger) == version
    assert contents(ledger) == before


@pytest.mark.parametrize("junk", [b"", b"[]", b'{"files": 1}', b'{"version": "other", "files": []}'])
def test_a_file_that_is_not_a_manifest_is_an_error(ledger: Ledger, junk: bytes) -> None:
    version = finalize(ledger)
    ledger.storage.put(f"{version.folder}/manifest.json", junk)
    with pytest.raises(IntegrityError, match="remove this manifest"):
        finalize(ledger)


def test_an_incomplete_store_is_refused_unless_partial(ledger: Ledger) -> None:
    complete = finalize(ledger)
    unit = max(ledger.list_units("transfer"))
    path_of(ledger, unit.marker_key).unlink()
    with pytest.raises(MissingError, match=r"0 shards and 1 results .* run generate again, or pass partial"):
        finalize(ledger)
    version = finalize(ledger, partial=True)
    assert version.id != complete.id
    assert (version.missing, version.objects) == (1, complete.objects - 1)
    manifest = read_manifest(ledger, version)
    assert (manifest["complete"], manifest["missing_shards"], manifest["missing_results"]) == (False, 0, 1)
    assert b"**This version is incomplete:** 0 input shards and 1 results" in ledger.storage.get("README.md")
    assert version.rows == complete.rows - 3


def test_a_planned_shard_without_commits_is_missing(ledger: Ledger) -> None:
    (key,) = ledger.plan_keys()
    ledger.record_plan({**ledger.read_plan(key), "shards": ["s-0", "s-1", "s-2"]})
    with pytest.raises(MissingError, match="1 shards and 0 results"):
        finalize(ledger)
    assert finalize(ledger, partial=True).missing == 1


def test_an_orphan_is_never_data(ledger: Ledger) -> None:
    expected = finalize(ledger)
    for kind in ("transfer", "adversarial"):
        marker = ledger.read_marker(min(ledger.list_units(kind)))
        name, _, extension = marker.object.rpartition(".")
        ledger.storage.put(f"{name}0.{extension}", ledger.read_data(marker))
    path_of(ledger, f"{expected.folder}/manifest.json").unlink()
    assert finalize(ledger) == expected


def test_a_version_is_the_same_in_a_folder_and_on_s3(storage: Storage, ledger: Ledger) -> None:
    for item in ledger.storage.list():
        storage.put(item.key, ledger.storage.get(item.key))
    other = Ledger(storage)
    assert finalize(other) == finalize(other) == finalize(ledger)
    assert contents(other) == contents(ledger)


def test_a_stray_file_in_a_version_is_an_error(ledger: Ledger) -> None:
    version = finalize(ledger)
    ledger.storage.put(f"{version.folder}/transfer/00001.parquet", b"x")
    with pytest.raises(IntegrityError, match=r"transfer/00001.parquet: not in the manifest; remove it"):
        finalize(ledger)


def test_an_audit_finds_nothing_wrong_with_a_finalized_store(ledger: Ledger) -> None:
    finalize(ledger)
    assert verify.audit(ledger).problems == []


def test_an_empty_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nothing is committed here yet"):
        finalize(new_ledger(tmp_path / "empty"), partial=True)


def test_a_version_names_no_host_and_no_input_path(ledger: Ledger, job: Job) -> None:
    finalize(ledger)
    (marker, *_) = ledger.read_markers(ledger.list_units("original"))
    host = marker.facts["worker"].partition(":")[0]
    for key, data in contents(ledger).items():
        assert job.data.shards[0].rpartition("/")[0].encode() not in data, key
        assert ledger.storage.url.encode() not in data, key
        assert f'"{host}'.encode() not in data, key
