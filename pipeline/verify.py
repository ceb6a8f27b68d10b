"""The audit: re-reads every committed object and checks it against its marker, its part and the plans."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from pipeline import codec, parts, results, shards
from pipeline.errors import GnpError
from pipeline.ledger import KINDS, Ledger, Marker, Unit, named, parse
from pipeline.parts import Images
from pipeline.sample import Part


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
        problems: Empty if the store is sound.
    """

    objects: int
    images: int
    problems: list[Problem]


class _WrongError(Exception):
    """A check that failed; its message is the problem."""


def audit(ledger: Ledger) -> Audit:
    """Re-reads everything: hashes, counts, keys, epsilon on the stored pixels, and what plans say should be there."""
    units = [unit for kind in KINDS for unit in ledger.units(kind)]
    by_part: dict[tuple[str, Part], list[Unit]] = defaultdict(list)
    for unit in units:
        by_part[unit.dataset, unit.part].append(unit)
    problems = [*_strangers(ledger), *_missing(ledger, set(units))]
    objects = images = 0
    for _, of_part in sorted(by_part.items()):
        read = _Part(ledger)
        # Originals first, then adversarial parts, then results: each is held against the one before it.
        for unit in sorted(of_part, key=lambda unit: KINDS.index(unit.kind) if unit.kind != "clean" else 2):
            objects += 1
            try:
                images += read.check(unit)
            except (_WrongError, GnpError, ValueError, KeyError, TypeError) as error:
                problems.append(Problem(ledger.storage.at(unit.marker), str(error) or type(error).__name__))
    return Audit(objects, images, problems)


class _Part:
    """The checks of one part's units, which share its decoded images."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.images: dict[tuple[str, str], Images] = {}

    def check(self, unit: Unit) -> int:
        """Checks one unit; returns how many adversarial images it measured."""
        marker = self.ledger.marker(unit)
        data = self.ledger.read(marker)
        if unit.target:
            self._check_results(marker, data)
            return 0
        images = parts.read(data, name=marker.object)
        if codec.pixels_sha256(images.pixels) != marker.facts["pixels_sha256"]:
            raise _WrongError("its pixels hash to something else than the marker says")
        if unit.attack:
            self._check_adversarial(marker, data, images)
        else:
            _check_original(marker, images)
        self.images[unit.source, unit.attack] = images
        return len(images.keys) if unit.attack else 0

    def _check_adversarial(self, marker: Marker, data: bytes, images: Images) -> None:
        original = self.images.get(("", ""))
        if original is None:
            raise _WrongError("its original part is missing or damaged, so that epsilon cannot be checked")
        _require_same(images, original)
        attack = marker.facts["attack"]
        if named(attack["name"], attack) != marker.unit.attack:
            raise _WrongError("the attack that its marker describes is not the one that its name stands for")
        _require_count(marker, "n", len(images.keys))
        if not len(images.keys):
            return
        if images.pixels.shape != original.pixels.shape:
            raise _WrongError(
                f"its images are {tuple(images.pixels.shape[1:])}, the originals {tuple(original.pixels.shape[1:])}"
            )
        moved = (images.pixels.to(torch.int16) - original.pixels.to(torch.int16)).abs().amax(dim=(1, 2, 3))
        budget = codec.levels(Fraction(attack["epsilon"]))
        outside = [key for key, most in zip(images.keys, moved.tolist(), strict=True) if most > budget]
        if outside:
            raise _WrongError(
                f"{len(outside)} images lie outside epsilon = {attack['epsilon']}, the first {outside[0]!r}"
            )
        for record, most in zip(shards.records(data, name=marker.object), moved.tolist(), strict=True):
            if abs(json.loads(record["json"])["linf"] * 255 - most) > 1e-6:
                raise _WrongError(f"image {record['__key__']!r} says another L∞ distance than its pixels")

    def _check_results(self, marker: Marker, data: bytes) -> None:
        images = self.images.get((marker.unit.source, marker.unit.attack))
        if images is None:
            raise _WrongError("the images that it scores are missing or damaged")
        table = results.read(data)
        _require_count(marker, "n", table.num_rows)
        digests = [codec.pixels_sha256(pixels) for pixels in images.pixels]
        for column, expected in (
            ("key", list(images.keys)),
            ("label", images.labels.tolist()),
            ("pixels_sha256", digests),
        ):
            if table.column(column).to_pylist() != expected:
                raise _WrongError(f"its column {column} does not match the stored images")
        if table.num_rows and table.column("target_id")[0].as_py() != marker.unit.target:
            raise _WrongError("its rows speak of another target than its marker")


def _check_original(marker: Marker, images: Images) -> None:
    facts = marker.facts
    _require_count(marker, "n_ok", len(images.keys))
    if facts["n_in"] != facts["n_ok"] + facts["n_quarantined"] or facts["n_quarantined"] != len(facts["quarantined"]):
        raise _WrongError(
            f"{facts['n_in']} images in, but {facts['n_ok']} kept and {facts['n_quarantined']} quarantined"
        )


def _require_count(marker: Marker, fact: str, found: int) -> None:
    if marker.facts[fact] != found:
        raise _WrongError(f"holds {found} images, its marker says {marker.facts[fact]}")


def _require_same(images: Images, original: Images) -> None:
    if images.keys != original.keys or not torch.equal(images.labels, original.labels):
        raise _WrongError("its keys or labels are not those of its original part")


def _strangers(ledger: Ledger) -> Iterator[Problem]:
    """Objects among the markers that are no markers."""
    for stored in ledger.storage.list("markers"):
        if parse(stored.key) is None:
            yield Problem(ledger.storage.at(stored.key), "not a marker; remove it")


def _missing(ledger: Ledger, committed: set[Unit]) -> Iterator[Problem]:
    """What the recorded plans say should be there and is not."""
    known = {(unit.dataset, unit.part.shard): unit.part.count for unit in committed if unit.kind == "original"}
    reported: set[Unit] = set()
    for plan, described in ledger.plans():
        remedy = f"run generate again, or remove {plan} if its results are no longer wanted"
        for shard in described["shards"]:
            count = known.get((described["dataset"], shard))
            if count is None:
                yield Problem(f"{described['dataset']}/{shard}", f"no part of this shard is committed; {remedy}")
                continue
            wanted = {unit for index in range(count) for unit in _planned(described, Part(shard, index, count))}
            for unit in sorted(wanted - committed - reported):
                reported.add(unit)
                yield Problem(ledger.storage.at(unit.marker), f"missing; {remedy}")


def _planned(described: dict[str, Any], part: Part) -> Iterator[Unit]:
    dataset = described["dataset"]
    attacked = [
        Unit(dataset, part, source, attack) for source in described["sources"] for attack in described["attacks"]
    ]
    for unit in (Unit(dataset, part), *attacked):
        yield unit
        yield from (Unit(dataset, part, unit.source, unit.attack, target) for target in described["targets"])
