"""What a recipe will take before it is run: counted by its plan, and timed by what was measured where it ran before."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.attack.cost import gradients
from pipeline.data import shards
from pipeline.data.sample import Part
from pipeline.ledger import Committed, Ledger, Marker, Unit
from pipeline.plan import outline
from pipeline.plan.external import ForeignAttack
from pipeline.plan.resolve import Plan

# So many markers of a kind are read: what a part takes differs little from another.
_READ = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """What one attack from one source, one target over all attacks, or the originals come to.

    Attributes:
        stage: Who does it: `generator` or `scorer`.
        name: What people call it.
        done: Images that stand; for a target, answers about them.
        left: Images that are missing; for a target, answers.
        gradients: Of each image; 0 where none are taken.
        seconds: Of a worker for each image, where that was measured; None where it was not.
        size_bytes: Of what is stored for each image; None where nothing like it is.
        objects: Objects that are missing; beside each lies a marker.
        device: What it was measured on.
    """

    stage: str
    name: str
    done: int
    left: int
    gradients: int
    seconds: float | None
    size_bytes: float | None
    objects: int
    device: str

    @property
    def hours(self) -> float | None:
        """Of one worker, for what is left."""
        return 0.0 if not self.left else None if self.seconds is None else self.left * self.seconds / 3600

    @property
    def bytes_left(self) -> float | None:
        """What is still to be stored."""
        return 0.0 if not self.left else None if self.size_bytes is None else self.left * self.size_bytes


@dataclass(frozen=True)
class Estimate:
    """What a plan comes to.

    Attributes:
        shards: How many it names.
        shards_known: Of how many of them the parts have been counted.
        input_bytes: Their size together.
        images: How many they hold: counted in some of them, and at as many a byte, within their parts, in the others.
        works: What there is to do.
    """

    shards: int
    shards_known: int
    input_bytes: int
    images: int
    works: tuple[Work, ...]

    def hours(self, stage: str) -> float:
        """Of one worker of a kind, for what was measured."""
        return sum(work.hours or 0.0 for work in self.works if work.stage == stage)

    @property
    def unmeasured(self) -> list[str]:
        """What is still to be made, and was nowhere made before, so that its hours are not among `hours`."""
        return [work.name for work in self.works if work.hours is None]

    @property
    def bytes_left(self) -> float | None:
        """What is still to be stored; None where something like it is not stored yet."""
        sizes = [work.bytes_left for work in self.works]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def estimate(plan: Plan, ledger: Ledger, *, rates: Ledger | None = None) -> Estimate:
    """What a plan comes to, and how much of it stands.

    Where nothing of the plan's data is committed, its first shard is read to count its images.

    Args:
        plan: What is to be made.
        ledger: Where: what lies there is not made again, and says what the rest will take. Nothing is written.
        rates: Another store that says what was not measured in this one, such as a trial's.

    Raises:
        StorageError: It cannot be read.
        ShardError: The first shard is damaged.
    """
    names = plan.outline
    committed = ledger.committed(outline.all_scopes(names))
    counted = _Counted(plan, ledger, committed, [ledger, *([rates] if rates else [])])
    original = Unit(names.dataset, Part("", 0, 1))
    attacks = [replace(original, source=source, attack=attack) for source in names.sources for attack in names.attacks]
    costs = {
        identity: 0 if isinstance(attack, ForeignAttack) else gradients(attack)
        for identity, attack in plan.attacks.items()
    }
    called = {each.id: each.spec.name for each in plan.targets}
    works = [
        counted.work("generator", "originals", [original], 0),
        *(
            counted.work("generator", f"{_short(unit.source)} → {_short(unit.attack)}", [unit], costs[unit.attack])
            for unit in attacks
        ),
        *(
            counted.work("scorer", name, [replace(unit, target=target) for unit in (original, *attacks)], 0)
            for target, name in called.items()
        ),
    ]
    return Estimate(
        shards=len(plan.takes),
        shards_known=counted.known,
        input_bytes=sum(take.shard.size_bytes for take in plan.takes),
        images=sum(counted.images.values()),
        works=tuple(_timed(works, attacks)),
    )


class _Counted:
    """Images and parts of a plan's shards, and what of them stands."""

    def __init__(self, plan: Plan, ledger: Ledger, committed: Committed, measured: Sequence[Ledger]) -> None:
        self._ledger, self._committed = ledger, committed
        self._measured = [
            (store, dataset)
            for store in measured
            for dataset in sorted({str(store.plan(key)["dataset"]) for key in store.plans()})
        ]
        names = [take.shard.name for take in plan.takes]
        known = {name: count for name in names if (count := committed.count(name)) is not None}
        self._held: dict[str, int] = {}
        per_byte, share = self._density(plan)
        self.known, self.parts, self.images = len(known), dict[str, int](), dict[str, int]()
        for take in plan.takes:
            name, part_size = take.shard.name, plan.job.data.part_size
            held = self._held.get(name, take.shard.size_bytes * per_byte)
            held = held if take.images is None else min(held, take.images)
            count = known.get(name) or max(1, math.ceil(round(held) / part_size))
            # All of its parts but the last are full.
            held = min(max(held, (count - 1) * part_size + 1), count * part_size) if name in known else held
            self.parts[name], self.images[name] = count, round(held * share)

    def _density(self, plan: Plan) -> tuple[float, float]:
        """Images a byte of shard, and which share of them is taken: of some shards whose originals all stand."""
        original = Unit(plan.dataset, Part("", 0, 1))
        stand = self._committed.scopes[original.scope]
        whole = [name for name, (count, bits) in stand.items() if bits == (1 << count) - 1]
        size = held = read = taken = 0
        for name in _spread(whole):
            count = stand[name][0]
            first, last = (
                self._ledger.marker(replace(original, part=Part(name, index, count))) for index in (0, count - 1)
            )
            size += int(first.fact("shard")["size_bytes"])
            self._held[name] = _held(first) * (count - 1) + _held(last)
            held += self._held[name]
            read += int(first.fact("n_in")) + int(last.fact("n_in"))
            taken += int(first.fact("n_ok")) + int(last.fact("n_ok"))
        if size and plan.job.data.limit is None:
            return held / size, plan.job.data.fraction * (taken / read if read else 1)
        if not plan.takes:
            return 0.0, 1.0
        with shards.spool(plan.takes[0].shard) as shard:
            return len(shard) / max(plan.takes[0].shard.size_bytes, 1), plan.job.data.fraction

    def work(self, stage: str, name: str, units: Sequence[Unit], cost: int) -> Work:
        """What some scopes lack together."""
        done = left = objects = 0
        for unit in units:
            for shard, images in self.images.items():
                count = self.parts[shard]
                standing = self._committed.bits(unit.scope, shard).bit_count()
                stands = round(images * standing / count)
                done, left, objects = done + stands, left + images - stands, objects + count - standing
        read = [marker for unit in units for marker in self._read(unit)]
        n = sum(_count(marker) for marker in read)
        return Work(
            stage,
            name,
            done,
            left,
            cost,
            seconds=sum(float(marker.fact("seconds")) for marker in read) / n if n else None,
            size_bytes=sum(marker.size_bytes for marker in read) / n if n else None,
            objects=objects,
            device=str(read[0].fact("device")) if read else "",
        )

    def _read(self, unit: Unit) -> list[Marker]:
        """Some markers of a scope; where it has none, of the same on other data or in another store, as a trial's."""
        others = (
            store.marker(each)
            for store, dataset in self._measured
            for each in store.units(replace(unit, dataset=dataset).scope)
        )
        return self._here(unit) or list(itertools.islice(others, _READ))

    def _here(self, unit: Unit) -> list[Marker]:
        """Some markers of a scope, of shards far apart."""
        found = [(name, *place) for name, place in self._committed.scopes[unit.scope].items() if place[1]]
        return [
            self._ledger.marker(replace(unit, part=Part(shard, (bits & -bits).bit_length() - 1, count)))
            for shard, count, bits in _spread(found)
        ]


def _timed(works: Sequence[Work], attacks: Sequence[Unit]) -> list[Work]:
    """Where an attack was not timed yet: as long a gradient as the source's others; as many bytes as any."""
    sources = dict(zip((work.name for work in works[1:]), (unit.source for unit in attacks), strict=False))
    per_gradient: dict[str, tuple[float, str]] = {}
    for work in works:
        if work.seconds is not None and work.gradients:
            per_gradient.setdefault(sources[work.name], (work.seconds / work.gradients, work.device))
    sizes: Mapping[str, float] = {work.stage: work.size_bytes for work in works if work.size_bytes is not None}

    def timed(work: Work) -> Work:
        size = sizes.get(work.stage) if work.size_bytes is None else work.size_bytes
        each = per_gradient.get(sources.get(work.name, ""))
        if work.seconds is None and work.gradients and each is not None:
            return replace(work, seconds=each[0] * work.gradients, size_bytes=size, device=each[1])
        return replace(work, size_bytes=size)

    return [timed(work) for work in works]


def _spread(found: Sequence[T]) -> Sequence[T]:
    """Some of them, far apart."""
    return found[:: max(1, len(found) // _READ)][:_READ]


def _held(original: Marker) -> int:
    """How many images its part of the shard holds, chosen or not."""
    return int(original.fact("n_in")) + int(original.fact("n_not_chosen"))


def _count(marker: Marker) -> int:
    facts = marker.facts
    return int(facts["n"] if "n" in facts else facts["n_ok"])


def _short(identity: str) -> str:
    """A name without the hash that follows it."""
    return identity.rpartition("-")[0]
