"""A store's committed results as one version that readers can take whole.

    versions/ID/clean/00000.parquet, transfer/00000.parquet …     the rows of all result files, in order of their units
    versions/ID/_info.json                                        the image shards, as timm's wds reader wants them
    versions/ID/README.md                                         the dataset card
    versions/ID/manifest.json                                     last: every committed object and file, with its hash
    _info.json, README.md, latest.json                            at the root: copies, and which version is the latest

File names in `_info.json` are relative to the store's root. ID covers what is committed and what was planned, so the
same store gives the same version; a folder without a manifest is no version. Once a manifest stands it is the version,
for everyone: its files are checked and never written again. Only facts of the store enter any of it, no time, no host
and no input URL, so that the same software writes the same bytes.
"""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.data.sample import Part
from pipeline.errors import IntegrityError, MissingError, StorageError
from pipeline.ledger import KINDS, Kind, Ledger, Marker, Unit, fingerprint
from pipeline.maintenance import card
from pipeline.results import schema
from pipeline.storage import Storage, sha256

log = logging.getLogger(__name__)

ROWS_PER_FILE = 2_000_000
# Raised whenever the same store is to give other files, so that they become another version.
_LAYOUT = 2
_RESULTS = ("clean", "transfer")
# What stands at the root too.
_COPIED = ("_info.json", "README.md")
_AT_ONCE = 1024
# What is made of originals, and which of its components these lack.
_OF_ORIGINALS: dict[Kind, dict[str, Any]] = {"adversarial": {"source": "", "attack": ""}, "clean": {}}
_READERS = 16
# So often a version is made anew because another became the latest meanwhile.
_TRIES = 5


@dataclass(frozen=True)
class Version:
    """A finalized version of a store.

    Attributes:
        id: Fingerprint of all that is committed and planned: the same store gives the same.
        key: Its folder, `versions/ID`.
        rows: Rows in its compacted Parquet files.
        images: Adversarial images.
        objects: Committed objects in its manifest.
        missing: Shards and results that plans want and that are not committed.
    """

    id: str
    key: str
    rows: int
    images: int
    objects: int
    missing: int


def finalize(ledger: Ledger, *, partial: bool = False) -> Version:
    """Makes a version of all that is committed, or finds it made; every result is read again and checked either way.

    Args:
        ledger: The store.
        partial: Also where something that a plan wants is missing; the version then says how much.

    Raises:
        MissingError: Nothing is committed, or something is missing and `partial` was not given.
        IntegrityError: A result, a marker or a file of the standing version is damaged, or a row is there twice.
        StorageError: The store failed, or others keep finalizing it.
    """
    storage = ledger.storage
    for _ in range(_TRIES):
        before = _latest_tag(storage)
        version = _found_or_made(ledger, partial=partial)
        if _publish(storage, version, before):
            log.info("%s: %d images, %d rows", storage.at(version.key), version.images, version.rows)
            return version
    raise StorageError(f"{storage.at('latest.json')}: others keep finalizing this store; try again when they are done")


def _found_or_made(ledger: Ledger, *, partial: bool) -> Version:
    storage = ledger.storage
    # What is made of something is listed before it: a run that commits meanwhile never seems to lack anything.
    units = sorted(unit for kind in reversed(KINDS) for unit in ledger.units(kind))
    if not units:
        raise MissingError(f"{storage.url}: nothing is committed here yet; run generate first")
    _require_one_division(storage, units)
    store = _Store(ledger.plans(), ledger.missing(units))
    if any(store.missing) and not partial:
        raise MissingError(
            f"{storage.url}: {store.missing[0]} shards and {store.missing[1]} results that runs set out to make are "
            "missing; run generate again, or pass partial (--partial) to finalize what is there"
        )
    for start in range(0, len(units), _AT_ONCE):
        for marker in ledger.markers(units[start : start + _AT_ONCE]):
            store.add(marker)
    identifier = store.id
    version = Version(
        id=identifier,
        key=f"versions/{identifier}",
        rows=sum(store.rows.values()),
        images=store.images,
        objects=len(store.markers),
        missing=sum(store.missing),
    )
    if _stands(storage, version):
        for _ in _tables(ledger, store.of(*_RESULTS)):
            pass
    else:
        _make(ledger, store, version)
    return version


@dataclass
class _Store:
    """What is committed, gathered from the markers one by one; of their facts only what a version needs is kept.

    Attributes:
        plans: Keys of the recorded plans.
        missing: Shards and results that these want and that are not committed.
        markers: All of them, in order of their units, with one fact left: `n`, the images or rows.
        counts: Dataset → how many images were taken, usable, quarantined, adversarial.
        shards: Dataset → its input shards.
        sources: Identity → what it stands for; likewise `targets` and `attacks`.
        software: Package → versions.
        bases: The last original and adversarial marker, whole: what those that follow were made of.
    """

    plans: list[str]
    missing: tuple[int, int]
    markers: list[Marker] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    shards: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    attacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    software: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    bases: dict[Kind, Marker] = field(default_factory=dict)

    def add(self, marker: Marker) -> None:
        """Takes in one marker.

        Raises:
            IntegrityError: It was made of something else than what stands.
        """
        unit = marker.unit
        self._require_made_of_what_stands(marker)
        counts = self.counts[unit.dataset]
        n = _count(marker, "n_ok" if unit.kind == "original" else "n")
        if unit.kind == "original":
            self.shards[unit.dataset].add(unit.part.shard)
            counts.update(taken=_count(marker, "n_in"), usable=n, quarantined=_count(marker, "n_quarantined"))
        elif unit.kind == "adversarial":
            counts.update(adversarial=n)
            self.sources[unit.source] = _described(marker, "source")
            self.attacks[unit.attack] = _described(marker, "attack")
        else:
            self.targets[unit.target] = _described(marker, "target")
        for package, number in _described(marker, "versions").items():
            self.software[package].add(str(number))
        self.markers.append(replace(marker, facts={"n": n}))

    def _require_made_of_what_stands(self, marker: Marker) -> None:
        unit, kind = marker.unit, marker.unit.kind
        if not unit.target:
            self.bases[kind] = marker
        base = self.bases.get("original" if kind in ("adversarial", "clean") else "adversarial")
        if kind == "original" or base is None or base.unit != replace(unit, target="", **_OF_ORIGINALS.get(kind, {})):
            return
        said, stands = ("original_pixels_sha256", "pixels_sha256") if kind == "adversarial" else ("scored_sha256", "")
        if said in marker.facts and marker.facts[said] != (base.facts.get(stands) if stands else base.sha256):
            raise IntegrityError(
                f"{unit.marker}: made of another {base.unit.kind} part than stands; run generate --retry-failed"
            )

    @property
    def id(self) -> str:
        """The fingerprint of all that is committed and planned."""
        objects = [[marker.object, marker.sha256] for marker in self.markers]
        return fingerprint({"layout": _LAYOUT, "objects": objects, "plans": self.plans})

    @property
    def images(self) -> int:
        """Adversarial images."""
        return sum(counts["adversarial"] for counts in self.counts.values())

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each kind of result."""
        return {kind: sum(marker.fact("n") for marker in self.of(kind)) for kind in _RESULTS}

    def of(self, *kinds: str) -> list[Marker]:
        """The markers of some kinds."""
        return [marker for marker in self.markers if marker.unit.kind in kinds]


def info(markers: Iterable[Marker]) -> dict[str, Any]:
    """The image shards as timm's `wds` reader wants them: split → file names and numbers of images.

    There are `original`, `adversarial` and `adversarial:SOURCE:ATTACK`, with `DATASET:` before them where there are
    several datasets. Parts without images are left out, for WebDataset takes an empty tar for an error.

    Args:
        markers: Of any kind, in the order in which the shards are to stand, each with its images as the fact `n`.

    References:
        timm, `timm/data/readers/reader_wds.py`, `_load_info` and `_parse_split_info`.
    """
    stored = [marker for marker in markers if not marker.unit.target]
    several = len({marker.unit.dataset for marker in stored}) > 1
    splits: dict[str, dict[str, int]] = defaultdict(dict)
    for marker in stored:
        unit, n = marker.unit, marker.fact("n")
        before = (unit.dataset,) if several else ()
        names = [("adversarial",), ("adversarial", unit.source, unit.attack)] if unit.attack else [("original",)]
        for name in names if n else []:
            splits[split_name(*before, *name)][marker.object] = n
    return {
        "splits": {
            name: {
                "name": name,
                "num_samples": sum(files.values()),
                "filenames": list(files),
                "shard_lengths": list(files.values()),
            }
            for name, files in sorted(splits.items())
        }
    }


def split_name(*pieces: str) -> str:
    """A name for a split that timm looks up: one with `tar` or `..` in it would be taken for a pattern of files."""
    safe = re.sub(r"[^A-Za-z0-9._:-]+", "-", ":".join(pieces))
    return re.sub(r"\.{2,}", "-", safe).replace("tar", "t-r")


def _make(ledger: Ledger, store: _Store, version: Version) -> None:
    """Writes a version's files, and last the manifest that makes them one."""
    files: list[dict[str, Any]] = []

    def write(name: str, data: bytes) -> None:
        _put(ledger.storage, f"{version.key}/{name}", data)
        files.append({"name": name, "sha256": sha256(data), "size_bytes": len(data)})

    names: dict[str, str] = {}
    for kind in _RESULTS:
        tables = _named(_tables(ledger, store.of(kind)), names)
        for index, data in enumerate(schema.compact(tables, rows_per_file=ROWS_PER_FILE)):
            write(f"{kind}/{index:05d}.parquet", data)
    images = info(store.markers)
    write("_info.json", _json(images))
    write("README.md", card.text(_card(store, version, names, images["splits"])).encode())
    manifest = {
        "version": version.id,
        "layout": _LAYOUT,
        "complete": not version.missing,
        "missing_shards": store.missing[0],
        "missing_results": store.missing[1],
        "images": version.images,
        "rows": store.rows,
        "plans": store.plans,
        "objects": [_entry(marker) for marker in store.markers],
        "files": files,
    }
    ledger.storage.put_once(f"{version.key}/manifest.json", _json(manifest))


def _entry(marker: Marker) -> dict[str, Any]:
    """A committed object as it stands in the manifest."""
    return {
        "kind": marker.unit.kind,
        "unit": asdict(marker.unit),
        "object": marker.object,
        "sha256": marker.sha256,
        "size_bytes": marker.size_bytes,
        "n": marker.fact("n"),
    }


def _card(store: _Store, version: Version, names: Mapping[str, str], splits: Mapping[str, Any]) -> card.Card:
    """What the dataset card is to say; a model that nothing was scored with goes by the name in its identity."""

    def networks(described: Mapping[str, dict[str, Any]]) -> list[card.Network]:
        return [card.Network(names.get(key, key.rpartition("-")[0]), key, described[key]) for key in sorted(described)]

    return card.Card(
        version=version.id,
        datasets=[
            card.Dataset(
                id=dataset,
                shards=len(store.shards[dataset]),
                **{name: counts[name] for name in ("taken", "usable", "quarantined", "adversarial")},
            )
            for dataset, counts in sorted(store.counts.items())
        ],
        sources=networks(store.sources),
        targets=networks(store.targets),
        attacks=store.attacks,
        splits={name: split["num_samples"] for name, split in splits.items()},
        rows=store.rows,
        software=store.software,
        plans=store.plans,
        missing_shards=store.missing[0],
        missing_results=store.missing[1],
    )


def _stands(storage: Storage, version: Version) -> bool:
    try:
        storage.get(f"{version.key}/manifest.json")
    except MissingError:
        return False
    return True


def _latest_tag(storage: Storage) -> str:
    """Which state of `latest.json` stands; empty while there is none."""
    try:
        return storage.stat("latest.json").version
    except MissingError:
        return ""


def _publish(storage: Storage, version: Version, before: str) -> bool:
    """Makes a version the store's latest, once its files have been found to be those of its manifest.

    Returns:
        False where another version became the latest since `before`: of what is committed it may know more.

    Raises:
        IntegrityError: A file is missing, damaged or a stranger, or the manifest is not one.
    """
    key = f"{version.key}/manifest.json"
    raw = storage.get(key)
    try:
        manifest = json.loads(raw)
        files = {f"{version.key}/{entry['name']}": str(entry["sha256"]) for entry in manifest["files"]}
        if manifest["version"] != version.id or not files.keys() >= {f"{version.key}/{name}" for name in _COPIED}:
            raise ValueError("not this version's manifest")
        for file, digest in files.items():
            storage.get(file, sha256_hex=digest)
    except (ValueError, KeyError, TypeError, AttributeError, MissingError, IntegrityError) as error:
        raise IntegrityError(f"{storage.at(key)}: {error}; or remove this manifest and finalize again") from error
    # Readers take `transfer/*.parquet`: what an earlier try left there would be rows that are there twice.
    for stored in storage.list(version.key):
        if stored.key not in {key, *files}:
            raise IntegrityError(f"{storage.at(stored.key)}: not in the manifest; remove it")
    for name in _COPIED:
        _put(storage, name, storage.get(f"{version.key}/{name}", sha256_hex=files[f"{version.key}/{name}"]))
    said = _json({"version": version.id, "manifest": key, "manifest_sha256": sha256(raw)})
    return _holds(storage, "latest.json", said) or storage.replace("latest.json", said, version=before)


def _tables(ledger: Ledger, markers: Sequence[Marker]) -> Iterator[tuple[Unit, schema.Table]]:
    """The checked tables of result files, in order; those without rows are passed over.

    Args:
        ledger: The store.
        markers: In order of their units, so that the parts of a shard come one after another.

    Raises:
        IntegrityError: A file is damaged, is not what its marker says, or holds a row that another holds too.
    """
    place: tuple[str, str] | None = None
    owners: dict[str, Part] = {}
    for marker, data in _read(ledger, markers):
        unit, where = marker.unit, ledger.storage.at(marker.object)
        table = schema.read(data, name=where)
        _require_own(marker, table, where)
        if place != (unit.dataset, unit.part.shard):
            place, owners = (unit.dataset, unit.part.shard), {}
        keys = table.column("key").to_pylist()
        # A row is told by its images' place and the models: keys that are one part's alone can come twice only in it.
        if len(set(keys)) < len(keys) or any(owners.setdefault(key, unit.part) != unit.part for key in keys):
            raise IntegrityError(f"{where}: holds a row that is there twice; run verify")
        if keys:
            yield unit, table


def _read(ledger: Ledger, markers: Sequence[Marker]) -> Iterator[tuple[Marker, bytes]]:
    """The verified data of markers, in order, a few read side by side."""
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(markers), _READERS):
            batch = markers[start : start + _READERS]
            yield from zip(batch, pool.map(ledger.read, batch), strict=True)


def _require_own(marker: Marker, table: schema.Table, where: str) -> None:
    """Refuses a table that holds another number of rows than its marker says, or another unit's."""
    unit = marker.unit
    if table.num_rows != marker.fact("n"):
        raise IntegrityError(f"{where}: holds {table.num_rows} rows, its marker says {marker.fact('n')}; run verify")
    own = {"dataset": unit.dataset, "shard": unit.part.shard, "part": unit.part.index, "target_id": unit.target}
    if unit.attack:
        own |= {"source_id": unit.source, "attack_id": unit.attack}
    if ("attack_id" in table.column_names) != bool(unit.attack):
        raise IntegrityError(f"{where}: holds another kind of result than its marker says; run verify")
    for column, value in own.items():
        if table.num_rows and table.column(column).unique().to_pylist() != [value]:
            raise IntegrityError(f"{where}: its column {column} is not {value!r} throughout; run verify")


def _named(tables: Iterable[tuple[Unit, schema.Table]], names: dict[str, str]) -> Iterator[schema.Table]:
    """The tables; what they call a source or a target is put into `names`, under its identity."""
    for unit, table in tables:
        for identity, column in ((unit.source, "source"), (unit.target, "target")):
            if identity:
                names[identity] = table.column(column)[0].as_py()
        yield table


def _require_one_division(storage: Storage, units: Iterable[Unit]) -> None:
    """Refuses a shard of which parts of two divisions are committed: their rows would be there twice."""
    counts: dict[tuple[str, str], int] = {}
    for unit in units:
        if counts.setdefault((unit.dataset, unit.part.shard), unit.part.count) != unit.part.count:
            raise IntegrityError(
                f"{storage.at(unit.marker)}: other markers divide this shard into "
                f"{counts[unit.dataset, unit.part.shard]} parts; remove those that are wrong"
            )


def _count(marker: Marker, name: str) -> int:
    value = marker.fact(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise IntegrityError(f"{marker.unit.marker}: {name} = {value!r} is no count")
    return value


def _described(marker: Marker, name: str) -> dict[str, Any]:
    value = marker.fact(name)
    if not isinstance(value, dict):
        raise IntegrityError(f"{marker.unit.marker}: {name} = {value!r} describes nothing")
    return value


def _put(storage: Storage, key: str, data: bytes) -> None:
    """Writes an object unless these very bytes stand there."""
    if not _holds(storage, key, data):
        storage.put(key, data)


def _holds(storage: Storage, key: str, data: bytes) -> bool:
    try:
        return storage.get(key) == data
    except MissingError:
        return False


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
