"""What lies in a store and is of no use: writers that died leave data without a marker, runs leave claims."""

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.errors import IntegrityError, MissingError, StorageError
from pipeline.ledger import Ledger, Unit, leases, parse
from pipeline.storage import Storage, Stored

# So many things are removed before it is looked again whether a run has begun.
_AT_ONCE = 50


@dataclass(frozen=True)
class Garbage:
    """One thing that may go.

    Attributes:
        key: Of the object; of an upload, its key and id.
        size_bytes: What its removal frees.
        why: One line.
        upload: Whether it is a multipart upload and not an object.
    """

    key: str
    size_bytes: int
    why: str
    upload: bool = False


def find(ledger: Ledger, *, age_s: float, keep_versions: int | None = None) -> list[Garbage]:
    """What has been of no use for at least `age_s`, by the store's clock.

    Args:
        ledger: The store.
        age_s: What is younger may be somebody's at work.
        keep_versions: So many finished versions are kept, the last ones, and beside them the latest and those that
            training here has read; by default all. Objects that only the others name may go the next time.

    Raises:
        StorageError: The store failed, or may not be written (its clock is read off a write).
    """
    storage = ledger.storage
    now = storage.clock()
    everything = list(storage.list())
    old = [stored for stored in everything if now - stored.modified >= age_s]
    old_keys = {stored.key for stored in old}
    live = {run.id for run in leases.seen(storage, now=now) if run.live}
    return [
        *(orphan for orphan in _orphans(ledger, everything) if orphan.key in old_keys),
        *_leavings(old, live, _versions_in_use(storage, now - age_s, keep_versions)),
        *(Garbage(upload, 0, "an upload that nobody finished", True) for upload in storage.stale_uploads(age_s=age_s)),
    ]


def remove(ledger: Ledger, garbage: Iterable[Garbage], *, age_s: float, keep_versions: int | None = None) -> int:
    """Removes what `find` found, but what has come to life since; returns how many things it removed.

    Raises:
        StorageError: A run is at work (its writers put data before markers), or the store failed.
    """
    storage, removed = ledger.storage, 0
    with leases.alone(storage) as other:
        _require_nobody(storage, other())
        for index, item in enumerate(garbage):
            if index % _AT_ONCE == 0:  # again and again, lest the lease run out and a run begin
                _require_nobody(storage, other())
                before = storage.clock() - age_s
                in_use = _versions_in_use(storage, before, keep_versions)
            if item.upload:
                storage.abort_upload(item.key)
            elif _version(item.key) not in in_use and _still_old(ledger, item.key, before):
                storage.delete([item.key])
            else:
                continue
            removed += 1
    return removed


def _require_nobody(storage: Storage, other: leases.Seen | None) -> None:
    if other is not None:
        host = other.record["host"]
        raise StorageError(f"{storage.url}: run {other.id} on {host} is at work; wait for its end, or stop it first")


def _still_old(ledger: Ledger, key: str, before: float) -> bool:
    try:
        return ledger.storage.stat(key).modified <= before
    except MissingError:
        return False


def _orphans(ledger: Ledger, everything: Iterable[Stored]) -> Iterator[Garbage]:
    """Data that neither a marker names nor the manifest of a finished version."""
    by_unit: dict[Unit, list[Stored]] = defaultdict(list)
    for stored in everything:
        if stored.key.startswith(("shards/", "results/")):
            unit = _unit(stored.key)
            if unit is None:
                yield Garbage(stored.key, stored.size_bytes, "nothing that this program writes")
            else:
                by_unit[unit].append(stored)
    committed = {unit for kind in {unit.kind for unit in by_unit} for unit in ledger.units(kind)}
    finalized = _finalized(ledger.storage, everything)
    for unit, data in by_unit.items():
        if unit in committed and len(data) == 1:
            continue  # nothing else could be what its marker names, which is not read: there may be millions
        try:
            kept = ledger.marker(unit).object if unit in committed else ""
        except IntegrityError:  # a damaged marker: which of them is the data cannot be known
            continue
        for stored in data:
            if stored.key != kept and stored.key not in finalized:
                yield Garbage(stored.key, stored.size_bytes, "data without a marker")


def _finalized(storage: Storage, everything: Iterable[Stored]) -> set[str]:
    """The objects of every finished version: also those that have since been made anew.

    Raises:
        IntegrityError: A manifest cannot be read, so that what is to be kept is not known.
    """
    kept: set[str] = set()
    for key in (stored.key for stored in everything if re.fullmatch(r"versions/[^/]+/manifest\.json", stored.key)):
        try:
            kept |= {str(entry["object"]) for entry in json.loads(storage.get(key))["objects"]}
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"{storage.at(key)}: not a manifest ({error}); restore it, or remove it") from error
    return kept


def _unit(key: str) -> Unit | None:
    """The unit that a data object belongs to: `shards/SCOPE/SHARD/00000-of-00001-HASH.tar`."""
    place = key.partition("/")[2].rpartition("-")[0]
    unit = parse(f"markers/{place}.json")
    return unit if unit is not None and key.startswith(f"{unit.data}-") else None


def _versions_in_use(storage: Storage, before: float, keep: int | None) -> set[str]:
    """The versions that are kept, or that somebody may be making: what an earlier try left is not made younger."""
    files = list(storage.list("versions"))
    young = {_version(stored.key) for stored in files if stored.modified > before}
    manifests = [stored for stored in files if stored.key == f"versions/{_version(stored.key)}/manifest.json"]
    finished = [_version(stored.key) for stored in sorted(manifests, key=lambda stored: -stored.modified)]
    if keep is None:
        return young | set(finished)
    return young | set(finished[:keep]) | _read(storage)


def _read(storage: Storage) -> set[str]:
    """The versions that readers are at: the latest, and those that the last training run of each name has read."""
    read = set()
    with contextlib.suppress(MissingError):
        read.add(str(json.loads(storage.get("latest.json"))["version"]))
    for stored in storage.list("training"):
        if re.fullmatch(r"training/[^/]+/current\.json", stored.key):
            read |= {str(version) for version in storage.record(stored.key)["versions"].values()}
    return read


def _version(key: str) -> str:
    """Of which version a file is; empty for what is of none."""
    return key.split("/")[1] if key.startswith("versions/") else ""


def _leavings(old: Iterable[Stored], live: set[str], in_use: set[str]) -> list[Garbage]:
    """Claims and records of runs that have ended, versions not kept, and what a killed writer left half done."""
    leavings = []
    for stored in old:
        folder, _, rest = stored.key.partition("/")
        why = ""
        if folder == "runs" and rest.removesuffix(".json") not in live:
            why = "the record of a run that has ended"
        elif folder == "claims" and not live:  # which run a claim is of stands inside it, and there may be millions
            why = "the claim of a run that has ended"
        elif folder in ("probe", ".scratch"):
            why = "left by a writer that was cut off"
        elif folder == "versions" and _version(stored.key) not in in_use:
            why = "a version that was never finished, or is no longer kept"
        if why:
            leavings.append(Garbage(stored.key, stored.size_bytes, why))
    # A version is none without its manifest, which goes first: cut off, the rest is that of an unfinished one.
    return sorted(leavings, key=lambda item: not item.key.endswith("/manifest.json"))
