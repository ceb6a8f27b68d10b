"""What a store has committed, read from its markers: objects, counts, models, attacks and software of a version."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import UNIT_KINDS, Ledger, Marker, Unit, UnitKind
from pipeline.storage import Storage

_MARKERS_AT_ONCE = 1024
# Kind of a result → the kind that it was computed from.
_PARENTS: dict[UnitKind, UnitKind] = {"adversarial": "original", "clean": "original", "transfer": "adversarial"}


@dataclass
class StoreContents:
    """Committed objects of a store, with counts and provenance; of each marker's facts only `n` is kept.

    Attributes:
        plans: Keys of the recorded plans.
        missing_shards: Number of shards that plans name and that have nothing committed.
        missing_results: Number of results of the other shards that plans want and that are not committed.
        markers: Markers in the order of their units, each with one fact: `n`, its number of images or rows.
        counts: Dataset → numbers of images: `input`, `usable`, `quarantined`, `adversarial`.
        shards: Dataset → names of its input shards.
        sources: Identity of a source → what the identity stands for.
        targets: Identity of a target → what the identity stands for.
        attacks: Identity of an attack → what the identity stands for.
        software: Package → its versions.
    """

    plans: list[str]
    missing_shards: int
    missing_results: int
    markers: list[Marker] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    shards: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    attacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    software: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, marker: Marker) -> None:
        """Adds one marker.

        Raises:
            IntegrityError: A fact is missing, or has the wrong type.
        """
        unit = marker.unit
        counts = self.counts[unit.dataset]
        n = _count(marker, "n_ok" if unit.kind == "original" else "n")
        if unit.kind == "original":
            self.shards[unit.dataset].add(unit.part.shard)
            counts.update(input=_count(marker, "n_in"), usable=n, quarantined=_count(marker, "n_quarantined"))
        elif unit.kind == "adversarial":
            counts.update(adversarial=n)
            self.sources[unit.source] = _mapping(marker, "source")
            self.attacks[unit.attack] = _mapping(marker, "attack")
        else:
            self.targets[unit.target] = _mapping(marker, "target")
        for package, number in _mapping(marker, "versions").items():
            self.software[package].add(str(number))
        self.markers.append(replace(marker, facts={"n": n}))

    @property
    def images(self) -> int:
        """Number of adversarial images."""
        return sum(counts["adversarial"] for counts in self.counts.values())

    @property
    def rows(self) -> dict[str, int]:
        """Number of result rows: `clean` and `transfer`."""
        return {kind: sum(marker.fact("n") for marker in self.of_kind(kind)) for kind in ("clean", "transfer")}

    def of_kind(self, *kinds: UnitKind) -> list[Marker]:
        """The markers of the given kinds."""
        return [marker for marker in self.markers if marker.unit.kind in kinds]


def collect(ledger: Ledger, *, partial: bool) -> StoreContents:
    """Reads all markers of a store.

    Args:
        ledger: The store.
        partial: Accept a store in which results that plans want are missing.

    Raises:
        MissingError: Nothing is committed, or something is missing and `partial` is false.
        IntegrityError: A marker is damaged, or contradicts another one.
    """
    url = ledger.storage.url
    # Results are listed before what they were computed from: a run that commits meanwhile never seems to lack anything.
    units = sorted(unit for kind in reversed(UNIT_KINDS) for unit in ledger.list_units(kind))
    if not units:
        raise MissingError(f"{url}: nothing is committed here yet; run generate first")
    _require_one_division(ledger.storage, units)
    contents = StoreContents(ledger.plan_keys(), *ledger.count_missing(units))
    if (contents.missing_shards or contents.missing_results) and not partial:
        raise MissingError(
            f"{url}: {contents.missing_shards} shards and {contents.missing_results} results that runs set out to make "
            "are missing; run generate again, or pass partial (--partial) to finalize what is there"
        )
    parents = _Parents()
    for start in range(0, len(units), _MARKERS_AT_ONCE):
        for marker in ledger.read_markers(units[start : start + _MARKERS_AT_ONCE]):
            parents.require_current(marker)
            contents.add(marker)
    return contents


class _Parents:
    """Checks that every result was computed from the part that is committed now.

    Markers come in the order of their units, so only the last original and the last adversarial marker are kept.
    """

    def __init__(self) -> None:
        self._last: dict[UnitKind, Marker] = {}

    def require_current(self, marker: Marker) -> None:
        """Compares the hash of its input that a marker records with the input's own marker.

        Raises:
            IntegrityError: They differ.
        """
        unit, kind = marker.unit, marker.unit.kind
        if kind in _PARENTS.values():
            self._last[kind] = marker
        parent = self._last.get(_PARENTS[kind]) if kind in _PARENTS else None
        if parent is None or parent.unit != _parent_unit(unit):
            return
        if kind == "adversarial":
            fact, expected = "original_pixels_sha256", parent.facts.get("pixels_sha256")
        else:
            fact, expected = "scored_sha256", parent.sha256
        if fact in marker.facts and marker.facts[fact] != expected:
            raise IntegrityError(
                f"{unit.marker_key}: computed from another {parent.unit.kind} part than the one that is committed; "
                "run generate --retry-failed"
            )


def _parent_unit(unit: Unit) -> Unit:
    return replace(unit, target="") if unit.target else replace(unit, source="", attack="")


def _require_one_division(storage: Storage, units: Iterable[Unit]) -> None:
    """Refuses a shard that is committed in two divisions, such as 2 parts and 4 parts: its rows would be duplicated."""
    counts: dict[tuple[str, str], int] = {}
    for unit in units:
        count = counts.setdefault((unit.dataset, unit.part.shard), unit.part.count)
        if count != unit.part.count:
            raise IntegrityError(
                f"{storage.url_of(unit.marker_key)}: other markers divide this shard into {count} parts; "
                "remove those that are wrong"
            )


def _count(marker: Marker, name: str) -> int:
    value = marker.fact(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise IntegrityError(f"{marker.unit.marker_key}: {name} = {value!r} is not a count")
    return value


def _mapping(marker: Marker, name: str) -> dict[str, Any]:
    value = marker.fact(name)
    if not isinstance(value, dict):
        raise IntegrityError(f"{marker.unit.marker_key}: {name} = {value!r} is not a mapping")
    return value
