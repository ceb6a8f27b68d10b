"""The audit: re-reads every committed object and checks it against its marker, its part and the plans."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch

from pipeline.data import codec, parts, shards
from pipeline.data.parts import Images
from pipeline.data.sample import Part
from pipeline.errors import GnpError, IntegrityError, MissingError
from pipeline.ledger import KINDS, Ledger, Marker, Unit, named, parse, planned
from pipeline.results import schema
from pipeline.storage import sha256


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: The object, or the unit that is missing.
        what: One line.
    """

    where: str
    what: str


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        objects: Objects whose bytes were re-read and hashed.
        images: Stored adversarial images measured against their originals.
        parts: Parts that were gone through.
        of_parts: Parts that there are.
        problems: Empty if the store, or the sample of it, is sound.
    """

    objects: int
    images: int
    parts: int
    of_parts: int
    problems: list[Problem]


class _CheckError(Exception):
    """A check that failed; its message is the problem."""


def audit(ledger: Ledger, *, fraction: float = 1.0, seed: int = 0) -> Audit:
    """Re-reads the store: hashes, counts, keys, epsilon on the stored pixels, and what plans say should be there.

    Args:
        ledger: The store.
        fraction: The share of the parts to re-read, one at least unless it is 0, each with all that was made of it;
            what should be there and is not is always found.
        seed: Which share.
    """
    # What is made of something is listed before it: a run that commits meanwhile never seems to lack anything.
    units = [unit for kind in reversed(KINDS) for unit in ledger.units(kind)]
    by_part: dict[tuple[str, Part], list[Unit]] = defaultdict(list)
    for unit in units:
        by_part[unit.dataset, unit.part].append(unit)
    problems = [*_strangers(ledger), *_missing(ledger, set(units)), *_beside(ledger)]
    drawn = {place: _draw(place, seed) for place in by_part}
    first = min(drawn, key=lambda place: drawn[place], default=None) if fraction else None
    chosen = {place: of_part for place, of_part in by_part.items() if drawn[place] < fraction or place == first}
    objects = images = 0
    for _, of_part in sorted(chosen.items()):
        read = _Part(ledger)
        # In the units' own order the original comes first, and each set of images before the results that score it.
        for unit in sorted(of_part):
            objects += 1
            try:
                images += read.check(unit)
            except (_CheckError, GnpError, ValueError, KeyError, TypeError) as error:
                problems.append(Problem(ledger.storage.at(unit.marker), str(error) or type(error).__name__))
    return Audit(objects, images, len(chosen), len(by_part), problems)


def _draw(place: tuple[str, Part], seed: int) -> float:
    """A number in [0, 1) by hash of a part and a seed."""
    dataset, part = place
    digest = sha256(f"{seed}/{dataset}/{part.shard}/{part.index}".encode())
    return int(digest[:13], 16) / 16**13


class _Part:
    """The checks of one part's units: its original, and the set of images that is being gone through."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.original: Images | None = None
        self.current: tuple[Marker, Images] | None = None

    def check(self, unit: Unit) -> int:
        """Checks one unit; returns how many adversarial images it measured."""
        marker = self.ledger.marker(unit)
        data = self.ledger.read(marker)
        if unit.target:
            self._check_results(marker, data)
            return 0
        self.current = None
        images = parts.read(data, name=marker.object)
        if codec.pixels_sha256(images.pixels) != marker.fact("pixels_sha256"):
            raise _CheckError("its pixels hash to something else than the marker says")
        if unit.attack:
            self._check_adversarial(marker, data, images)
        else:
            _check_original(marker, images)
            self.original = images
        self.current = (marker, images)
        return len(images.keys) if unit.attack else 0

    def _check_adversarial(self, marker: Marker, data: bytes, images: Images) -> None:
        original = self.original
        if original is None:
            raise _CheckError("its original part is missing or damaged, so that epsilon cannot be checked")
        _require_same(images, original)
        attack = marker.fact("attack")
        if named(attack["name"], attack) != marker.unit.attack:
            raise _CheckError("the attack that its marker describes is not the one that its name stands for")
        _require_count(marker, "n", len(images.keys))
        if not len(images.keys):
            return
        if images.pixels.shape != original.pixels.shape:
            raise _CheckError(
                f"its images are {tuple(images.pixels.shape[1:])}, the originals {tuple(original.pixels.shape[1:])}"
            )
        moved = images.pixels.to(torch.int32) - original.pixels.to(torch.int32)
        # In whole levels of 1/255: the largest change, and the sum of squares.
        linf, squared = moved.abs().amax(dim=(1, 2, 3)).tolist(), (moved.long() ** 2).sum(dim=(1, 2, 3)).tolist()
        epsilon = Fraction(attack["epsilon"])
        far, budget = (
            (linf, codec.levels(epsilon)) if attack["norm"] == "linf" else (squared, codec.squared_levels(epsilon))
        )
        outside = [key for key, most in zip(images.keys, far, strict=True) if most > budget]
        if outside:
            raise _CheckError(
                f"{len(outside)} images lie outside epsilon = {attack['epsilon']}, the first {outside[0]!r}"
            )
        for record, most, squares in zip(shards.records(data, name=marker.object), linf, squared, strict=True):
            said = json.loads(record["json"])
            if abs(said["linf"] * 255 - most) > 1e-6 or abs((said["l2"] * 255) ** 2 - squares) > 1e-6 * (1 + squares):
                raise _CheckError(f"image {record['__key__']!r} says another distance than its pixels")

    def _check_results(self, marker: Marker, data: bytes) -> None:
        unit = marker.unit
        scored, images = self.current or (None, None)
        if scored is None or images is None or (scored.unit.source, scored.unit.attack) != (unit.source, unit.attack):
            raise _CheckError("the images that it scores are missing or damaged")
        if marker.fact("scored_sha256") != scored.sha256:
            raise _CheckError("it scores other bytes than those that are stored")
        table = schema.read(data, name=marker.object)
        _require_count(marker, "n", table.num_rows)
        wanted = [None if each < 0 else each for each in images.target_classes.tolist()]
        digests = [codec.pixels_sha256(pixels) for pixels in images.pixels]
        for column, expected in (
            ("key", list(images.keys)),
            ("label", images.labels.tolist()),
            ("pixels_sha256", digests),
            *([("target_class", wanted)] if unit.attack else []),
        ):
            if table.column(column).to_pylist() != expected:
                raise _CheckError(f"its column {column} does not match the stored images")
        if table.num_rows:
            _check_constants(marker, table)


def _check_constants(marker: Marker, table: schema.Table) -> None:
    """The columns that are the same in every row, against what the marker's name stands for."""
    unit, target = marker.unit, marker.fact("target")
    expected = {"dataset": unit.dataset, "shard": unit.part.shard, "part": unit.part.index, "target_id": unit.target}
    expected |= {"policy": target["policy"], "weights_sha256": target["digest"]}
    if unit.attack:
        expected |= {"source_id": unit.source, "attack_id": unit.attack}
    for column, value in expected.items():
        if table.column(column).unique().to_pylist() != [value]:
            raise _CheckError(f"its column {column} is not {value!r} throughout")
    if named(table.column("target")[0].as_py(), target) != unit.target:
        raise _CheckError("the target that its marker describes is not the one that its name stands for")


def _check_original(marker: Marker, images: Images) -> None:
    _require_count(marker, "n_ok", len(images.keys))
    taken, kept, quarantined = (marker.fact(name) for name in ("n_in", "n_ok", "n_quarantined"))
    if taken != kept + quarantined or quarantined != len(marker.fact("quarantined")):
        raise _CheckError(f"{taken} images in, but {kept} kept and {quarantined} quarantined")


def _require_count(marker: Marker, fact: str, found: int) -> None:
    if marker.fact(fact) != found:
        raise _CheckError(f"holds {found} images, its marker says {marker.fact(fact)}")


def _require_same(images: Images, original: Images) -> None:
    if images.keys != original.keys or not torch.equal(images.labels, original.labels):
        raise _CheckError("its keys or labels are not those of its original part")


def _strangers(ledger: Ledger) -> Iterator[Problem]:
    """Objects among the markers that are no markers."""
    for stored in ledger.storage.list("markers"):
        if parse(stored.key) is None:
            yield Problem(ledger.storage.at(stored.key), "not a marker; remove it")


def _beside(ledger: Ledger) -> Iterator[Problem]:
    """What lies beside the results: stored weights, records, and the files of finished versions."""
    storage = ledger.storage
    weights = [stored.key for stored in storage.list("weights")]
    for key in weights:
        name = key.removeprefix("weights/").removesuffix(".safetensors")
        yield from _problem(ledger, key, partial(storage.get, key, sha256_hex=name))
    for folder in ("inputs", "failures", "claims"):
        for stored in storage.list(folder):
            yield from _problem(ledger, stored.key, partial(storage.record, stored.key))
    yield from _networks(ledger, set(weights))
    manifests = [stored.key for stored in storage.list("versions") if stored.key.endswith("/manifest.json")]
    for manifest in manifests:
        yield from _version(ledger, manifest.rpartition("/")[0], manifest)
    yield from _latest(ledger, bool(manifests))


def _networks(ledger: Ledger, weights: set[str]) -> Iterator[Problem]:
    """Records of networks that are damaged, or whose weights are gone; networks of a plan that have no record."""
    storage, known = ledger.storage, set[str]()
    remedy = "a run puts it back from where it first came from"
    for stored in storage.list("models"):
        try:
            record = storage.record(stored.key)
            known.add(record.get("digest") or record["identity"]["digest"])
            key = f"weights/{record['weights']}.safetensors"
        except (GnpError, KeyError, TypeError) as error:
            yield Problem(storage.at(stored.key), str(error))
            continue
        if key not in weights:
            yield Problem(storage.at(key), f"missing; {remedy}")
    for plan_key in ledger.plans():
        try:
            plan = ledger.plan(plan_key)
        except IntegrityError:
            continue  # told of where plans are gone through
        for name, identity in {**plan["sources"], **plan["targets"]}.items():
            for each in [*identity.get("ensemble", [identity]), *identity.get("defenses", ())]:
                if "digest" in each and each["digest"] not in known:
                    yield Problem(f"{storage.at('models')}: {name}", f"no record of its weights; {remedy}")


def _latest(ledger: Ledger, finalized: bool) -> Iterator[Problem]:
    """What stands at the root for readers of the latest version: it has to be that version's."""
    storage, where = ledger.storage, "latest.json"
    try:
        latest = json.loads(storage.get(where))
        where = str(latest["manifest"])
        manifest = json.loads(storage.get(where, sha256_hex=latest["manifest_sha256"]))
        files = {file["name"]: file["sha256"] for file in manifest["files"]}
        for where in ("_info.json", "README.md"):
            storage.get(where, sha256_hex=files[where])
    except MissingError as error:
        if finalized or where != "latest.json":  # a store that was never finalized has none
            yield Problem(storage.at(where), f"{error}; finalize again")
    except (GnpError, ValueError, KeyError, TypeError) as error:
        yield Problem(storage.at(where), f"not what the latest version has ({error}); finalize again")


def _version(ledger: Ledger, folder: str, manifest: str) -> Iterator[Problem]:
    storage = ledger.storage
    try:
        files = {str(file["name"]): str(file["sha256"]) for file in json.loads(storage.get(manifest))["files"]}
    except (ValueError, TypeError, KeyError) as error:
        yield Problem(storage.at(manifest), f"not a manifest ({error}); remove it and finalize again")
        return
    for name, digest in files.items():
        yield from _problem(ledger, f"{folder}/{name}", partial(storage.get, f"{folder}/{name}", sha256_hex=digest))


def _problem(ledger: Ledger, key: str, read: Callable[[], object]) -> Iterator[Problem]:
    try:
        read()
    except GnpError as error:
        yield Problem(ledger.storage.at(key), str(error))


def _missing(ledger: Ledger, committed: set[Unit]) -> Iterator[Problem]:
    """What the recorded plans say should be there and is not."""
    reported: set[str] = set()
    for key in ledger.plans():
        remedy = f"run the same command again, or remove {ledger.storage.at(key)} if its results are no longer wanted"
        try:
            plan = ledger.plan(key)
        except IntegrityError as error:
            yield Problem(ledger.storage.at(key), str(error))
            continue
        shards_missing, units = planned(plan, committed)
        places = {f"{plan['dataset']}/{shard}": "no part of this shard is committed" for shard in shards_missing}
        places |= {ledger.storage.at(unit.marker): "missing" for unit in units}
        for where, what in places.items():
            if where not in reported:
                reported.add(where)
                yield Problem(where, f"{what}; {remedy}")
