"""Garbage collection: data without a marker, records of runs that have ended, unfinished uploads, unwanted versions."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.errors import IntegrityError, MissingError, StorageError
from pipeline.ledger import Ledger, Unit, leases, parse_data_key
from pipeline.maintenance import manifest, releases
from pipeline.storage import Storage, StoredObject

# Number of removals between two checks that no run has begun.
_REMOVALS_PER_CHECK = 50


@dataclass(frozen=True)
class Garbage:
    """One object, or one multipart upload, that may be removed.

    Attributes:
        key: The object's key; for an upload, its key and id.
        size_bytes: The size of the object.
        reason: Why it may be removed, in one line.
        upload: Whether it is a multipart upload.
    """

    key: str
    size_bytes: int
    reason: str
    upload: bool = False


def find(ledger: Ledger, *, age_s: float, keep_versions: int | None = None) -> list[Garbage]:
    """Lists garbage that is at least `age_s` old by the store's clock.

    Args:
        ledger: The store.
        age_s: Younger objects stay: a running process may still need them.
        keep_versions: How many of the newest finished versions are kept, beside the latest and those that training in
            this store has read; by default all. Objects that only a removed version lists are found the next time.

    Raises:
        StorageError: The store failed, or is read-only (its clock is read from a write).
    """
    storage = ledger.storage
    now = storage.read_clock()
    stored_objects = list(storage.list())
    old = [stored for stored in stored_objects if now - stored.modified >= age_s]
    old_keys = {stored.key for stored in old}
    live_runs = {run.id for run in leases.list_runs(storage, now=now) if run.live}
    uploads = storage.list_stale_uploads(age_s=age_s)
    return [
        *(orphan for orphan in _orphans(ledger, stored_objects) if orphan.key in old_keys),
        *_leftovers(old, live_runs, _versions_in_use(ledger, now - age_s, keep_versions)),
        *(Garbage(upload, 0, "an upload that nobody finished", True) for upload in uploads),
    ]


def remove(ledger: Ledger, garbage: Iterable[Garbage], *, age_s: float, keep_versions: int | None = None) -> int:
    """Removes garbage that `find` listed, except what has been written again or come into use since then.

    Returns:
        The number of objects and uploads removed.

    Raises:
        StorageError: A run is active (it writes data before the marker), or the store failed.
    """
    storage = ledger.storage
    removed = 0
    with leases.exclusive_access(storage) as renew_and_find_other:
        _require_no_run(storage, renew_and_find_other())
        for index, item in enumerate(garbage):
            if index % _REMOVALS_PER_CHECK == 0:  # the lease may run out meanwhile, and a run begin
                _require_no_run(storage, renew_and_find_other())
                cutoff = storage.read_clock() - age_s
                in_use = _versions_in_use(ledger, cutoff, keep_versions)
            if item.upload:
                storage.abort_upload(item.key)
            elif _version_of(item.key) not in in_use and _is_older(storage, item.key, cutoff):
                storage.delete([item.key])
            else:
                continue
            removed += 1
    return removed


def _require_no_run(storage: Storage, run: leases.RunRecord | None) -> None:
    if run is not None:
        host = run.record["host"]
        raise StorageError(f"{storage.url}: run {run.id} on {host} is at work; wait for its end, or stop it first")


def _is_older(storage: Storage, key: str, cutoff: float) -> bool:
    try:
        return storage.stat(key).modified <= cutoff
    except MissingError:
        return False


def _orphans(ledger: Ledger, stored_objects: Iterable[StoredObject]) -> Iterator[Garbage]:
    """Data that neither a marker nor the manifest of a finished version names."""
    by_unit: dict[Unit, list[StoredObject]] = defaultdict(list)
    for stored in stored_objects:
        if stored.key.startswith(("shards/", "results/")):
            unit = parse_data_key(stored.key)
            if unit is None:
                yield Garbage(stored.key, stored.size_bytes, "nothing that this program writes")
            else:
                by_unit[unit].append(stored)
    committed = {unit for kind in {unit.kind for unit in by_unit} for unit in ledger.list_units(kind)}
    finalized = _objects_of_versions(ledger.storage, stored_objects)
    for unit, data in by_unit.items():
        if unit in committed and len(data) == 1:
            continue  # it must be what the marker names; reading the markers could be millions of requests
        try:
            named = ledger.read_marker(unit).object if unit in committed else ""
        except IntegrityError:  # a damaged marker: any of the objects may be the data
            continue
        for stored in data:
            if stored.key != named and stored.key not in finalized:
                yield Garbage(stored.key, stored.size_bytes, "data without a marker")


def _objects_of_versions(storage: Storage, stored_objects: Iterable[StoredObject]) -> set[str]:
    """The objects that finished versions list, also those that have been replaced since.

    Raises:
        IntegrityError: A manifest cannot be read, so its objects are unknown.
    """
    objects: set[str] = set()
    for key in (stored.key for stored in stored_objects if _is_manifest(stored.key)):
        try:
            objects |= manifest.parse(storage.get(key)).object_keys()
        except ValueError as error:
            raise IntegrityError(
                f"{storage.url_of(key)}: not a manifest ({error}); restore it, or remove it"
            ) from error
    return objects


def _versions_in_use(ledger: Ledger, cutoff: float, keep: int | None) -> set[str]:
    """The versions that are kept, and those with a file younger than the cutoff: a process may be writing them."""
    files = list(ledger.storage.list("versions"))
    young = {_version_of(stored.key) for stored in files if stored.modified > cutoff}
    manifests = sorted((stored for stored in files if _is_manifest(stored.key)), key=lambda stored: -stored.modified)
    finished = [_version_of(stored.key) for stored in manifests]
    if keep is None:
        return young | set(finished)
    return young | set(finished[:keep]) | _versions_with_readers(ledger)


def _versions_with_readers(ledger: Ledger) -> set[str]:
    """The latest version, and those that the last training run of each name has read."""
    storage = ledger.storage
    versions = set()
    with contextlib.suppress(MissingError):
        versions.add(releases.latest_id(ledger))
    for stored in storage.list("training"):
        if re.fullmatch(r"training/[^/]+/current\.json", stored.key):
            versions |= {str(version) for version in storage.get_record(stored.key)["versions"].values()}
    return versions


def _version_of(key: str) -> str:
    """The version that a file belongs to; empty for other objects."""
    return key.split("/")[1] if key.startswith("versions/") else ""


def _is_manifest(key: str) -> bool:
    version = _version_of(key)
    return bool(version) and key == manifest.key(version)


def _leftovers(old: Iterable[StoredObject], live_runs: set[str], versions_in_use: set[str]) -> list[Garbage]:
    """Claims and records of ended runs, versions that are not kept, and what killed writers left behind."""
    leftovers = []
    for stored in old:
        folder, _, name = stored.key.partition("/")
        reason = ""
        if folder == "runs" and name.removesuffix(".json") not in live_runs:
            reason = "the record of a run that has ended"
        elif folder == "claims" and not live_runs:  # a claim holds its run's name inside, and there may be millions
            reason = "the claim of a run that has ended"
        elif folder in ("probe", ".scratch"):
            reason = "left by a writer that was cut off"
        elif folder == "versions" and _version_of(stored.key) not in versions_in_use:
            reason = "a version that was never finished, or is no longer kept"
        if reason:
            leftovers.append(Garbage(stored.key, stored.size_bytes, reason))
    # Manifests go first: if the removal is cut off, what remains is an unfinished version.
    return sorted(leftovers, key=lambda item: not item.key.endswith("/manifest.json"))
