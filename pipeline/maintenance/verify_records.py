"""Checks of all that a store holds beside its parts: plans, weights, records and finalized versions."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from pipeline.errors import GnpError, IntegrityError, MissingError
from pipeline.ledger import Ledger, Unit, finished_shards, missing_from_plan, parse_marker_key
from pipeline.maintenance import manifest


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a store.

    Attributes:
        address: The address of the object, or of what is missing.
        message: What is wrong, in one line.
    """

    address: str
    message: str


def check_records(ledger: Ledger, committed: set[Unit]) -> Iterator[Problem]:
    """The problems of plans, weights, records and versions.

    Args:
        ledger: The store.
        committed: Every committed unit.
    """
    yield from _unknown_markers(ledger)
    yield from _missing_results(ledger, committed)
    yield from _index_of_finished_shards(ledger)
    storage = ledger.storage
    weights = [stored.key for stored in storage.list("weights")]
    for key in weights:
        digest = key.removeprefix("weights/").removesuffix(".safetensors")
        yield from _unreadable(ledger, key, partial(storage.get, key, sha256_hex=digest))
    for folder in ("inputs", "failures", "claims"):
        for stored in storage.list(folder):
            yield from _unreadable(ledger, stored.key, partial(storage.get_record, stored.key))
    yield from _model_records(ledger, set(weights))
    manifests = [stored.key for stored in storage.list("versions") if stored.key.endswith("/manifest.json")]
    for key in manifests:
        yield from _version_files(ledger, key)
    yield from _latest_version(ledger, finalized=bool(manifests))


def _unknown_markers(ledger: Ledger) -> Iterator[Problem]:
    for stored in ledger.storage.list("markers"):
        if parse_marker_key(stored.key) is None:
            yield Problem(ledger.storage.url_of(stored.key), "not a marker; remove it")


def _missing_results(ledger: Ledger, committed: set[Unit]) -> Iterator[Problem]:
    """Results that plans want and that are not committed, and plans that cannot be read."""
    reported: set[str] = set()
    for key in ledger.plan_keys():
        remedy = (
            f"run the same command again, or remove {ledger.storage.url_of(key)} if its results are no longer wanted"
        )
        try:
            plan = ledger.read_plan(key)
        except IntegrityError as error:
            yield Problem(ledger.storage.url_of(key), str(error))
            continue
        shards, units = missing_from_plan(plan, committed)
        missing = {f"{plan['dataset']}/{shard}": "no part of this shard is committed" for shard in shards}
        missing |= {ledger.storage.url_of(unit.marker_key): "missing" for unit in units}
        for address, message in missing.items():
            if address not in reported:
                reported.add(address)
                yield Problem(address, f"{message}; {remedy}")


def _index_of_finished_shards(ledger: Ledger) -> Iterator[Problem]:
    storage = ledger.storage
    for key in [stored.key for stored in storage.list("finished") if "/records/" in stored.key]:
        try:
            if not finished_shards.is_true(storage, finished_shards.read_record(storage, key)):
                yield Problem(storage.url_of(key), "says that shards are finished which lack parts; remove it")
        except MissingError:  # a run that revokes has removed it
            continue
        except GnpError as error:
            yield Problem(storage.url_of(key), str(error))


def _model_records(ledger: Ledger, weights: set[str]) -> Iterator[Problem]:
    """Damaged records of models, records without stored weights, and models of plans without a record."""
    storage = ledger.storage
    remedy = "a run puts it back from where it first came from"
    recorded = set[str]()
    for stored in storage.list("models"):
        try:
            record = storage.get_record(stored.key)
            recorded.add(record.get("digest") or record["identity"]["digest"])
            key = f"weights/{record['weights']}.safetensors"
        except (GnpError, KeyError, TypeError) as error:
            yield Problem(storage.url_of(stored.key), str(error))
            continue
        if key not in weights:
            yield Problem(storage.url_of(key), f"missing; {remedy}")
    for name, digest in _planned_digests(ledger):
        if digest not in recorded:
            yield Problem(f"{storage.url_of('models')}: {name}", f"no record of its weights; {remedy}")


def _planned_digests(ledger: Ledger) -> Iterator[tuple[str, str]]:
    """The sources, targets and their defenses in all plans: identity, and digest of the weights."""
    for key in ledger.plan_keys():
        try:
            plan = ledger.read_plan(key)
        except IntegrityError:
            continue  # a problem that `_missing_results` reports
        for name, identity in {**plan["sources"], **plan["targets"]}.items():
            for component in [*identity.get("ensemble", [identity]), *identity.get("defenses", ())]:
                if "digest" in component:
                    yield name, component["digest"]


def _version_files(ledger: Ledger, manifest_key: str) -> Iterator[Problem]:
    """Damaged or missing files of a version."""
    storage = ledger.storage
    try:
        files = manifest.parse(storage.get(manifest_key)).files
    except ValueError as error:
        yield Problem(storage.url_of(manifest_key), f"not a manifest ({error}); remove it and finalize again")
        return
    folder = manifest_key.rpartition("/")[0]
    for name, digest in files.items():
        yield from _unreadable(ledger, f"{folder}/{name}", partial(storage.get, f"{folder}/{name}", sha256_hex=digest))


def _latest_version(ledger: Ledger, *, finalized: bool) -> Iterator[Problem]:
    """Files at the root that differ from those of the latest version."""
    storage = ledger.storage
    key = "latest.json"
    try:
        latest = json.loads(storage.get(key))
        key = str(latest["manifest"])
        files = manifest.parse(storage.get(key, sha256_hex=latest["manifest_sha256"])).files
        for key in ("_info.json", "README.md"):
            storage.get(key, sha256_hex=files[key])
    except MissingError as error:
        if finalized or key != "latest.json":  # a store that was never finalized has no latest.json
            yield Problem(storage.url_of(key), f"{error}; finalize again")
    except (GnpError, ValueError, KeyError, TypeError) as error:
        yield Problem(storage.url_of(key), f"not what the latest version has ({error}); finalize again")


def _unreadable(ledger: Ledger, key: str, read: Callable[[], object]) -> Iterator[Problem]:
    try:
        read()
    except GnpError as error:
        yield Problem(ledger.storage.url_of(key), str(error))
