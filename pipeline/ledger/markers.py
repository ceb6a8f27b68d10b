"""The ledger: what is committed, and what it is called.

Data is put first, under a name that holds its hash; then its marker, put-if-absent, which is the commit. Readers start
from markers: an object without one is an orphan and never data. What has been done is read off the markers' *names*
alone, so planning and progress cost one listing.

    markers/original/DATASET/PART.json                              an original part
    markers/adversarial/DATASET/SOURCE/ATTACK/PART.json             an adversarial part
    markers/clean/DATASET/TARGET/PART.json                          clean predictions
    markers/transfer/DATASET/SOURCE/ATTACK/TARGET/PART.json         adversarial predictions
    plans/ID.json                                                   what a run set out to make
    failures/PLAN/SOURCE/SHARD/0-1.json                             what a run of it gave up, and why

DATASET, SOURCE, ATTACK and TARGET are `name-fingerprint`, where the fingerprint covers all that determines the pixels
or predictions; PART is `SHARD/00003-of-00005`. A changed recipe therefore writes elsewhere and never mixes with old
results.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.data.sample import Part
from pipeline.errors import IntegrityError, MissingError
from pipeline.storage import Storage, sha256

Kind = Literal["original", "adversarial", "clean", "transfer"]
KINDS: tuple[Kind, ...] = ("original", "adversarial", "clean", "transfer")

_PART = re.compile(r"(?P<index>\d{5,})-of-(?P<count>\d{5,})\.json")
# Which of source, attack, target stand between a kind's dataset and its part.
_SCOPE: dict[Kind, tuple[str, ...]] = {
    "original": (),
    "adversarial": ("source", "attack"),
    "clean": ("target",),
    "transfer": ("source", "attack", "target"),
}
_READERS = 32


@dataclass(frozen=True, order=True)
class Unit:
    """What one marker stands for; empty strings where a kind has no such component.

    Attributes:
        dataset: Identity of the prepared images.
        part: Which of them.
        source: Identity of the model attacked.
        attack: Identity of the attack.
        target: Identity of the model scored.
    """

    dataset: str
    part: Part
    source: str = ""
    attack: str = ""
    target: str = ""

    @property
    def kind(self) -> Kind:
        """Which of the four kinds of result this is."""
        if self.target:
            return "transfer" if self.attack else "clean"
        return "adversarial" if self.attack else "original"

    @property
    def scope(self) -> str:
        """The folder of its kind, dataset and models: `clean/DATASET/TARGET`."""
        return "/".join([self.kind, self.dataset, *(getattr(self, name) for name in _SCOPE[self.kind])])

    @property
    def path(self) -> str:
        """Where it stands below `markers/`, and its data below `shards/` or `results/`."""
        return f"{self.scope}/{self.part.shard}/{self.part.index:05d}-of-{self.part.count:05d}"

    @property
    def data(self) -> str:
        """The key of its data, up to the hash: a tar of images, or Parquet where a target has scored them."""
        return f"{'results' if self.target else 'shards'}/{self.path}"

    @property
    def marker(self) -> str:
        """The key of its marker."""
        return f"markers/{self.path}.json"


@dataclass(frozen=True)
class Marker:
    """A commit: which object holds a unit's data, and the facts that were true when it was made.

    Attributes:
        unit: What it stands for.
        object: The key of the data.
        sha256: Of the data.
        size_bytes: Of the data.
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
            IntegrityError: The marker does not say.
        """
        if name not in self.facts:
            raise IntegrityError(f"{self.unit.marker}: the marker does not say {name}")
        return self.facts[name]


def fingerprint(identity: Mapping[str, Any]) -> str:
    """The first 12 hex digits of the sha256 of canonical JSON."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def named(name: str, identity: Mapping[str, Any]) -> str:
    """An identity as it stands in keys: a readable name, then the fingerprint of it all, name included."""
    return f"{slug(name)}-{fingerprint({'name': name, **identity})}"


def slug(name: str) -> str:
    """A name in characters that any store takes."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name)


class Ledger:
    """The markers of one store, and the objects that they commit."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def commit(self, unit: Unit, data: bytes, extension: str, facts: Mapping[str, Any]) -> Marker:
        """Stores a unit's data and then its marker; whoever's marker stands is the result, for everyone.

        Args:
            unit: What the data is.
            data: The object, whole.
            extension: `tar` or `parquet`.
            facts: What the marker is to remember, as JSON values.

        Returns:
            The marker that stands: this one, or an earlier writer's.
        """
        digest = sha256(data)
        marker = Marker(
            unit=unit,
            object=f"{unit.data}-{digest[:16]}.{extension}",
            sha256=digest,
            size_bytes=len(data),
            facts=dict(facts),
        )
        self.storage.put(marker.object, data)
        if self.storage.put_record(unit.marker, asdict(marker)):
            return marker
        return self.marker(unit)

    def units(self, prefix: str) -> Iterator[Unit]:
        """Every committed unit below `markers/{prefix}`, from one listing.

        Args:
            prefix: A kind, or a kind's folder such as `clean/DATASET`.
        """
        for stored in self.storage.list(f"markers/{prefix}"):
            unit = parse(stored.key)
            if unit is not None:
                yield unit

    def marker(self, unit: Unit) -> Marker:
        """A unit's marker.

        Raises:
            MissingError: The unit is not committed.
            IntegrityError: The marker cannot be read as one, or is another unit's.
        """
        fields = self.storage.record(unit.marker)
        try:
            own = fields.pop("unit")
            marker = Marker(unit=Unit(**{**own, "part": Part(**own["part"])}), **fields)
            whose = marker.unit.marker
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise IntegrityError(f"{self.storage.at(unit.marker)}: not a marker ({error})") from error
        if marker.unit != unit:
            raise IntegrityError(f"{self.storage.at(unit.marker)}: this is the marker of {whose}")
        if not re.fullmatch(rf"{re.escape(unit.data)}-[^/]+", str(marker.object)) or not isinstance(marker.facts, dict):
            raise IntegrityError(
                f"{self.storage.at(unit.marker)}: not a marker (its data cannot lie at {marker.object!r})"
            )
        if not re.fullmatch("[0-9a-f]{64}", str(marker.sha256)):  # without one, its data would be believed unread
            raise IntegrityError(f"{self.storage.at(unit.marker)}: not a marker (it names no sha256)")
        return marker

    def revoke(self, dataset: str, parts: Collection[Part]) -> None:
        """Takes back all that is committed of some parts; their data become orphans.

        What was made of something goes before it, so wherever this is cut off, what still stands is whole.
        """
        if not parts:
            return
        for kind in reversed(KINDS):
            self.storage.delete([unit.marker for unit in self.units(f"{kind}/{dataset}") if unit.part in parts])

    def markers(self, units: Iterable[Unit]) -> Iterator[Marker]:
        """The markers of many units, read side by side, in order."""
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(self.marker, units)

    def read(self, marker: Marker) -> bytes:
        """The committed data, verified against the marker's hash.

        Raises:
            MissingError: The object is gone.
            IntegrityError: Its bytes are not those that were committed.
        """
        return self.storage.get(marker.object, sha256_hex=marker.sha256)

    def committed(self, scopes: Iterable[str], *, shard: str = "") -> "Committed":
        """What stands below each of some scopes, such as `clean/DATASET/TARGET`, listed side by side.

        One request lists 1,000 markers and none is read, so this is what planning and progress rest on.

        Args:
            scopes: Which.
            shard: Of this shard only; by default of all.
        """

        def list_one(scope: str) -> dict[str, tuple[int, int]]:
            found: dict[str, tuple[int, int]] = {}
            start = len(f"markers/{scope}/")
            for stored in self.storage.list(f"markers/{scope}/{shard}" if shard else f"markers/{scope}"):
                place, _, name = stored.key[start:].rpartition("/")
                match = _PART.fullmatch(name)
                if match is not None and "/" not in place:
                    _, parts = found.get(place, (0, 0))
                    found[place] = int(match["count"]), parts | 1 << int(match["index"])
            return found

        scopes = list(scopes)
        with ThreadPoolExecutor(_READERS) as pool:
            return Committed(dict(zip(scopes, pool.map(list_one, scopes), strict=True)))

    def record_plan(self, plan: Mapping[str, Any]) -> str:
        """Remembers what a run sets out to make, so that `verify` can tell what is missing; returns its id."""
        identifier = fingerprint(plan)
        self.storage.put_record(f"plans/{identifier}.json", plan)
        return identifier

    def plans(self) -> list[str]:
        """The keys of every plan that a run has recorded in this store."""
        return sorted(stored.key for stored in self.storage.list("plans"))

    def plan(self, key: str) -> dict[str, Any]:
        """A recorded plan.

        Raises:
            IntegrityError: It is not the plan that its name stands for.
        """
        plan = self.storage.record(key)
        if key != f"plans/{fingerprint(plan)}.json":
            raise IntegrityError(f"{self.storage.at(key)}: not the plan that its name stands for; remove it")
        return plan

    def missing(self, committed: Collection[Unit]) -> tuple[int, int]:
        """How many shards that plans name have nothing committed, and how many results of the others are missing."""
        standing = set(committed)
        shards: set[tuple[str, str]] = set()
        units: set[Unit] = set()
        for plan in map(self.plan, self.plans()):
            without, wanted = planned(plan, standing)
            shards |= {(plan["dataset"], shard) for shard in without}
            units |= set(wanted)
        return len(shards), len(units)

    def fail(self, failure: "Failure") -> None:
        """Lists what a run gave up; a later one of the same plan passes it over until it is told to retry."""
        self.storage.put_record(failure.key, asdict(failure), once=False)

    def failures(self, plan: str = "") -> list["Failure"]:
        """What runs of a plan (by default, of any) have given up.

        Raises:
            IntegrityError: A record cannot be read as one.
        """
        keys = sorted(stored.key for stored in self.storage.list(f"failures/{plan}" if plan else "failures"))
        with ThreadPoolExecutor(_READERS) as pool:
            try:
                return [Failure(**record) for record in pool.map(self.storage.record, keys)]
            except TypeError as error:
                raise IntegrityError(f"{self.storage.at('failures')}: not a failure ({error})") from error

    def forgive(self, failures: Iterable["Failure"]) -> None:
        """Takes failures off the list."""
        self.storage.delete([failure.key for failure in failures])


@dataclass(frozen=True)
class Failure:
    """What a run gave up.

    Attributes:
        plan: The plan's id.
        source: Identity of the model attacked.
        shard: Name of the input shard.
        offset: The first part of it.
        stride: From one part to the next; 1 where it is the whole shard.
        version: The store's tag of the shard: once the shard is another, the failure is void.
        item: What the run called it.
        reason: One line.
        tries: How often it was tried.
        run: Which run.
        store_failed: The store was to blame: later runs try it again, unasked.
    """

    plan: str
    source: str
    shard: str
    offset: int
    stride: int
    version: str
    item: str
    reason: str
    tries: int
    run: str
    store_failed: bool = False

    @property
    def key(self) -> str:
        """Where it is recorded."""
        return f"failures/{self.plan}/{self.source}/{self.shard}/{self.offset}-{self.stride}.json"


@dataclass(frozen=True)
class Committed:
    """What stands in a ledger, some 100 bytes a shard and scope.

    Attributes:
        scopes: Scope → shard → (how many parts it has, which of them stand, as bits).
    """

    scopes: Mapping[str, Mapping[str, tuple[int, int]]]

    def __contains__(self, unit: Unit) -> bool:
        return bool(self.bits(unit.scope, unit.part.shard) >> unit.part.index & 1)

    def count(self, shard: str) -> int | None:
        """How many parts a shard has; None while none of them stands."""
        return next((found[shard][0] for found in self.scopes.values() if shard in found), None)

    def bits(self, scope: str, shard: str) -> int:
        """The parts of a shard that stand in a scope: bit i for part i."""
        return self.scopes[scope].get(shard, (0, 0))[1]


def opened(store: str) -> Ledger:
    """The ledger of a store that a run has begun to fill.

    Raises:
        MissingError: No run has written there: a mistyped address is no sound, empty store.
    """
    ledger = Ledger(Storage(store))
    if not ledger.plans():
        raise MissingError(f"{ledger.storage.url}: no run has written here; check the address, or run generate first")
    return ledger


def planned(plan: Mapping[str, Any], committed: Collection[Unit]) -> tuple[list[str], list[Unit]]:
    """What of a recorded plan is missing: shards of which nothing is known yet, and units of the others."""
    dataset = plan["dataset"]
    counts = {
        unit.part.shard: unit.part.count for unit in committed if (unit.kind, unit.dataset) == ("original", dataset)
    }
    attacks = [("", ""), *((source, attack) for source in plan["sources"] for attack in plan["attacks"])]
    wanted = [
        Unit(dataset, Part(shard, index, counts[shard]), source, attack, target)
        for shard in plan["shards"]
        for index in range(counts.get(shard, 0))
        for source, attack in attacks
        for target in ("", *plan["targets"])
    ]
    return [shard for shard in plan["shards"] if shard not in counts], [
        unit for unit in wanted if unit not in committed
    ]


def parse(key: str) -> Unit | None:
    """The unit that a marker's key stands for; None where the key is no marker's."""
    folder, kind, *middle = key.split("/")
    if folder != "markers" or kind not in KINDS or len(middle) != len(_SCOPE[kind]) + 3:
        return None
    dataset, *scope, shard, name = middle
    match = _PART.fullmatch(name)
    if match is None:
        return None
    part = Part(shard, int(match["index"]), int(match["count"]))
    return Unit(dataset, part, **dict(zip(_SCOPE[kind], scope, strict=True)))
