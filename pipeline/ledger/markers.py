"""Markers, and the ledger that commits and reads them.

Data is put first, under a name that holds its hash; then its marker, put-if-absent, which is the commit. Readers start
from markers: an object without one is an orphan and never data. What is committed is read off the markers' *names*
alone, so planning and progress cost one listing. The keys are drawn in `keys` and `plans`.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.data.sample import Part
from pipeline.errors import IntegrityError, MissingError, RecipeError
from pipeline.ledger import finished_shards
from pipeline.ledger.committed import CommittedParts, list_scope, list_scope_without
from pipeline.ledger.keys import UNIT_KINDS, Unit, fingerprint, parse_marker_key, unit_from_record
from pipeline.ledger.plans import Failure, missing_from_plan
from pipeline.storage import Storage, have_one_order, sha256

_READERS = 32


@dataclass(frozen=True)
class Marker:
    """A commit: the object that holds a unit's data, and facts about how it was made.

    Attributes:
        unit: The unit.
        object: Key of the data.
        sha256: Hash of the data.
        size_bytes: Size of the data.
        facts: Counts, provenance, versions, seconds: JSON values.
    """

    unit: Unit
    object: str
    sha256: str
    size_bytes: int
    facts: dict[str, Any]

    def fact(self, name: str) -> Any:
        """One of the facts.

        Raises:
            IntegrityError: The marker has no fact of this name.
        """
        if name not in self.facts:
            raise IntegrityError(f"{self.unit.marker_key}: the marker does not say {name}")
        return self.facts[name]


def _decode_marker(record: Mapping[str, Any], unit: Unit) -> Marker:
    """A unit's marker from its record.

    Raises:
        ValueError: The record is not a marker, or is another unit's; the message is the reason.
    """
    try:
        marker = Marker(**{**record, "unit": unit_from_record(record["unit"])})
        key = marker.unit.marker_key
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a marker ({error})") from error
    if marker.unit != unit:
        raise ValueError(f"this is the marker of {key}")
    if not re.fullmatch(rf"{re.escape(unit.data_key)}-[^/]+", str(marker.object)) or not isinstance(marker.facts, dict):
        raise ValueError(f"not a marker (its data cannot lie at {marker.object!r})")
    if not re.fullmatch("[0-9a-f]{64}", str(marker.sha256)):  # without a hash, its data would not be verified
        raise ValueError("not a marker (it names no sha256)")
    return marker


class Ledger:
    """The markers, plans and failures of one store."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def commit(self, unit: Unit, data: bytes, extension: str, facts: Mapping[str, Any]) -> Marker:
        """Stores a unit's data and then its marker. Of several writers, the first marker counts for all.

        Args:
            unit: The unit.
            data: The object, whole.
            extension: `tar` or `parquet`.
            facts: Facts for the marker, as JSON values.

        Returns:
            The stored marker: this one, or an earlier writer's.
        """
        digest = sha256(data)
        marker = Marker(
            unit=unit,
            object=f"{unit.data_key}-{digest[:16]}.{extension}",
            sha256=digest,
            size_bytes=len(data),
            facts=dict(facts),
        )
        self.storage.put(marker.object, data)
        if self.storage.put_record(unit.marker_key, asdict(marker)):
            return marker
        return self.read_marker(unit)

    def revoke(self, dataset: str, parts: Collection[Part]) -> None:
        """Removes the markers of all units of some parts; their data become orphans.

        Units are removed before those that they were made from, so a revocation that is cut off leaves nothing
        without its origin.
        """
        if not parts:
            return
        finished_shards.void_index(self.storage, dataset)
        for kind in reversed(UNIT_KINDS):
            units = self.list_units(f"{kind}/{dataset}")
            self.storage.delete([unit.marker_key for unit in units if unit.part in parts])

    def list_units(self, prefix: str) -> Iterator[Unit]:
        """Every committed unit below `markers/{prefix}`, from one listing.

        Args:
            prefix: A kind, or a kind's folder such as `clean/DATASET`.
        """
        for stored in self.storage.list(f"markers/{prefix}"):
            unit = parse_marker_key(stored.key)
            if unit is not None:
                yield unit

    def list_committed(self, scopes: Iterable[str], *, shard: str = "", shards: Iterable[str] = ()) -> CommittedParts:
        """The committed parts of some scopes, such as `clean/DATASET/TARGET`, listed in parallel.

        No marker is read, so planning and progress rest on this.

        Args:
            scopes: The scopes, all of one dataset.
            shard: Only this shard; by default all.
            shards: The only shards that matter, so that those in the index of finished shards are not listed; by
                default all markers are.
        """
        scopes, ordered = list(scopes), sorted(shards)
        index = None
        if ordered and have_one_order(ordered):
            index = finished_shards.read_index(self.storage, scopes[0].split("/")[1])  # before any marker is listed

        def list_one(scope: str) -> dict[str, tuple[int, int]]:
            if index is not None and (finished := index.finished(scope)):
                return list_scope_without(self.storage, scope, ordered, finished)
            return list_scope(self.storage, scope, shard=shard)

        with ThreadPoolExecutor(_READERS) as pool:
            return CommittedParts(dict(zip(scopes, pool.map(list_one, scopes), strict=True)), index)

    def read_marker(self, unit: Unit) -> Marker:
        """A unit's marker.

        Raises:
            MissingError: The unit is not committed.
            IntegrityError: The record is not a marker, or is another unit's.
        """
        record = self.storage.get_record(unit.marker_key)
        try:
            return _decode_marker(record, unit)
        except ValueError as error:
            raise IntegrityError(f"{self.storage.url_of(unit.marker_key)}: {error}") from error

    def read_markers(self, units: Iterable[Unit]) -> Iterator[Marker]:
        """The markers of many units, read in parallel, in order."""
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(self.read_marker, units)

    def read_data(self, marker: Marker) -> bytes:
        """The committed data, verified against the marker's hash.

        Raises:
            MissingError: The object is gone.
            IntegrityError: Its bytes are not those that were committed.
        """
        return self.storage.get(marker.object, sha256_hex=marker.sha256)

    def record_plan(self, plan: Mapping[str, Any]) -> str:
        """Records what a run sets out to make, so that `verify` finds what is missing; returns the plan's id."""
        identifier = fingerprint(plan)
        self.storage.put_record(f"plans/{identifier}.json", plan)
        return identifier

    def plan_keys(self) -> list[str]:
        """The keys of all recorded plans."""
        return sorted(stored.key for stored in self.storage.list("plans"))

    def read_plan(self, key: str) -> dict[str, Any]:
        """A recorded plan.

        Raises:
            IntegrityError: It is not the plan that its name stands for.
        """
        plan = self.storage.get_record(key)
        if key != f"plans/{fingerprint(plan)}.json":
            raise IntegrityError(f"{self.storage.url_of(key)}: not the plan that its name stands for; remove it")
        return plan

    def count_missing(self, committed: Collection[Unit]) -> tuple[int, int]:
        """What recorded plans name and is not committed: shards without any part, and units of the other shards."""
        committed = set(committed)
        shards: set[tuple[str, str]] = set()
        units: set[Unit] = set()
        for plan in map(self.read_plan, self.plan_keys()):
            missing_shards, missing_units = missing_from_plan(plan, committed)
            shards |= {(plan["dataset"], shard) for shard in missing_shards}
            units |= set(missing_units)
        return len(shards), len(units)

    def record_failure(self, failure: Failure) -> None:
        """Records an item that a run gave up; later runs of the plan skip it unless they retry failures."""
        self.storage.put_record(failure.key, asdict(failure), if_absent=False)

    def list_failures(self, plan: str = "") -> list[Failure]:
        """The recorded failures of a plan, by default of all plans.

        Raises:
            IntegrityError: A record is not a failure.
        """
        keys = sorted(stored.key for stored in self.storage.list(f"failures/{plan}" if plan else "failures"))
        with ThreadPoolExecutor(_READERS) as pool:
            try:
                return [Failure(**record) for record in pool.map(self.storage.get_record, keys)]
            except TypeError as error:
                raise IntegrityError(f"{self.storage.url_of('failures')}: not a failure ({error})") from error

    def remove_failures(self, failures: Iterable[Failure]) -> None:
        """Removes recorded failures."""
        self.storage.delete([failure.key for failure in failures])


def store_url(store: object) -> str:
    """A store's address as text.

    Raises:
        RecipeError: It is neither text nor a path.
    """
    if not isinstance(store, (str, Path)):
        raise RecipeError(f"store is of type {type(store).__name__}: expected a folder, or s3://bucket/prefix")
    return str(store)


def open_ledger(store: str | Path) -> Ledger:
    """The ledger of a store that has results.

    Raises:
        RecipeError: The address has another form.
        MissingError: No run has written there; a mistyped address must not pass for an empty store.
        StorageError: The store's server does not answer.
    """
    ledger = Ledger(Storage(store_url(store)))
    ledger.storage.check_contact()
    if not ledger.plan_keys():
        raise MissingError(f"{ledger.storage.url}: no run has written here; check the address, or run generate first")
    return ledger
