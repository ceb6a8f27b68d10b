import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Ledger
from pipeline.maintenance import garbage, releases
from pipeline.maintenance.finalize import finalize


def rewrite_manifest(ledger: Ledger, change: Callable[[dict[str, Any]], None]) -> None:
    key = json.loads(ledger.storage.get("latest.json"))["manifest"]
    manifest = json.loads(ledger.storage.get(key))
    change(manifest)
    ledger.storage.put(key, json.dumps(manifest).encode())


def test_a_version_lists_what_was_committed(ledger: Ledger) -> None:
    version = finalize(ledger)
    assert releases.latest_id(ledger) == version.id
    listed = releases.markers(ledger, version.id)
    for unit, marker in listed.items():
        committed = ledger.read_marker(unit)
        assert (marker.object, marker.sha256, marker.size_bytes) == (
            committed.object,
            committed.sha256,
            committed.size_bytes,
        )
        assert marker.facts == {"n": committed.facts["n" if unit.attack or unit.target else "n_ok"]}
    assert len(listed) == version.objects
    assert releases.markers(ledger, "latest") == listed


def test_a_version_that_does_not_exist_is_missing(ledger: Ledger) -> None:
    with pytest.raises(MissingError, match="no version is finalized here; run finalize"):
        releases.markers(ledger, "latest")
    with pytest.raises(MissingError, match="no version 'tomorrow' is finalized here"):
        releases.markers(ledger, "tomorrow")


def test_a_manifest_with_other_objects_than_its_id_stands_for_is_refused(ledger: Ledger) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["objects"][0]["sha256"] = "0" * 64

    finalize(ledger)
    rewrite_manifest(ledger, change)
    with pytest.raises(IntegrityError, match=r"manifest.json: not a manifest \(its objects are not those"):
        releases.markers(ledger, "latest")


def test_a_manifest_with_exchanged_units_is_refused(ledger: Ledger) -> None:
    def change(manifest: dict[str, Any]) -> None:
        attacks = sorted({entry["unit"]["attack"] for entry in manifest["objects"]} - {""})
        for entry in manifest["objects"]:
            if entry["kind"] == "adversarial":
                entry["unit"]["attack"] = attacks[1 - attacks.index(entry["unit"]["attack"])]

    finalize(ledger)
    rewrite_manifest(ledger, change)
    with pytest.raises(IntegrityError, match=r"is not the data of markers/adversarial/"):
        releases.markers(ledger, "latest")


def test_a_damaged_manifest_is_refused(ledger: Ledger) -> None:
    finalize(ledger)
    rewrite_manifest(ledger, lambda manifest: manifest.pop("objects"))
    with pytest.raises(
        IntegrityError, match=r"manifest.json: not a manifest \(KeyError: 'objects'\); run finalize again"
    ):
        releases.markers(ledger, "latest")
    with pytest.raises(IntegrityError, match=r"manifest.json: not a manifest .*; restore it, or remove it"):
        garbage.find(ledger, age_s=0)


@pytest.mark.parametrize("junk", [b"", b"[]", b"{}"])
def test_a_damaged_latest_json_is_refused(ledger: Ledger, junk: bytes) -> None:
    ledger.storage.put("latest.json", junk)
    with pytest.raises(IntegrityError, match=r"latest.json: names no version; run finalize again"):
        releases.latest_id(ledger)
    with pytest.raises(IntegrityError, match=r"latest.json: names no version"):
        garbage.find(ledger, age_s=0, keep_versions=1)
