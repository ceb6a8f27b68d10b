"""A forecast of a recipe's cost before it runs: images, gradients, hours and bytes, from what was measured before."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.attack.cost import gradients_per_image
from pipeline.data.sample import Part
from pipeline.ledger import CommittedParts, Ledger, Marker, Unit, name_in_id
from pipeline.plan.external import ExternalAttack
from pipeline.plan.image_counts import SAMPLES, ImageCounts, count_images, spread
from pipeline.plan.outline import all_scopes
from pipeline.plan.resolve import Plan


@dataclass(frozen=True)
class WorkForecast:
    """The cost of one attack from one source, of one target over all attacks, or of the originals.

    Attributes:
        stage: The kind of worker: `generator` or `scorer`.
        name: Name for people.
        done: Images that are committed; for a target, predictions.
        left: Images that are missing; for a target, predictions.
        gradients: Gradients per image; 0 where there are none.
        seconds: A worker's seconds per image; None where it was not measured.
        size_bytes: Stored bytes per image; None where nothing similar is stored.
        objects: Number of missing objects; each also gets a marker.
        device: The device of the measurement.
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
        """Hours of one worker for what is left; None where they were not measured."""
        return 0.0 if not self.left else None if self.seconds is None else self.left * self.seconds / 3600

    @property
    def bytes_left(self) -> float | None:
        """Bytes still to be stored; None where nothing similar is stored."""
        return 0.0 if not self.left else None if self.size_bytes is None else self.left * self.size_bytes


@dataclass(frozen=True)
class Forecast:
    """The cost of a plan.

    Attributes:
        shards: Number of shards.
        shards_known: Number of shards whose parts have been counted.
        input_bytes: Size of all shards.
        images: Number of images; see `image_counts`.
        works: The cost of each attack and target.
    """

    shards: int
    shards_known: int
    input_bytes: int
    images: int
    works: tuple[WorkForecast, ...]

    def hours(self, stage: str) -> float:
        """Hours of one worker of a kind, without `unmeasured` work."""
        return sum(work.hours or 0.0 for work in self.works if work.stage == stage)

    @property
    def unmeasured(self) -> list[str]:
        """Names of work that is left and was never measured: `hours` does not include it."""
        return [work.name for work in self.works if work.hours is None]

    @property
    def bytes_left(self) -> float | None:
        """Bytes still to be stored; None where nothing similar is stored for some of them."""
        sizes = [work.bytes_left for work in self.works]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def forecast_plan(plan: Plan, ledger: Ledger, *, rates: Ledger | None = None) -> Forecast:
    """Forecasts a plan's cost, and how much of it is already done.

    Where nothing of the plan's data is committed, its first shard is read to count its images.

    Args:
        plan: The plan.
        ledger: The store of the results: what it has is not made again, and is measured. Nothing is written.
        rates: Another store, such as a trial's, with measurements of what this one does not have.

    Raises:
        StorageError: A store cannot be read.
        ShardError: The first shard is damaged.
    """
    outline = plan.outline
    committed = ledger.list_committed(all_scopes(outline))
    measurements = _Measurements(ledger, committed, [ledger, *([rates] if rates else [])])
    counts = count_images(plan, ledger, committed)
    original = Unit(outline.dataset, Part("", 0, 1))
    attacks = [
        replace(original, source=source, attack=attack) for source in outline.sources for attack in outline.attacks
    ]
    gradients = {
        identity: 0 if isinstance(attack, ExternalAttack) else gradients_per_image(attack)
        for identity, attack in plan.attacks.items()
    }

    def work(stage: str, name: str, units: Sequence[Unit], gradients: int = 0) -> WorkForecast:
        remaining = _remaining(stage, name, units, gradients, counts, committed)
        return _with_measurements(remaining, measurements.markers(units))

    works = [work("generator", "originals", [original])]
    works += [
        work("generator", f"{name_in_id(unit.source)} → {name_in_id(unit.attack)}", [unit], gradients[unit.attack])
        for unit in attacks
    ]
    works += [
        work("scorer", target.spec.name, [replace(unit, target=target.id) for unit in (original, *attacks)])
        for target in plan.targets
    ]
    return Forecast(
        shards=len(plan.selections),
        shards_known=counts.known,
        input_bytes=sum(selection.shard.size_bytes for selection in plan.selections),
        images=sum(counts.images.values()),
        works=tuple(_fill_in_unmeasured(works, attacks)),
    )


def _remaining(
    stage: str, name: str, units: Sequence[Unit], gradients: int, counts: ImageCounts, committed: CommittedParts
) -> WorkForecast:
    """Images and objects of some units that are committed, and that are missing; without measurements."""
    done = left = objects = 0
    for unit in units:
        for shard, images in counts.images.items():
            parts = counts.parts[shard]
            committed_parts = committed.part_bits(unit.scope, shard).bit_count()
            committed_images = round(images * committed_parts / parts)
            done += committed_images
            left += images - committed_images
            objects += parts - committed_parts
    return WorkForecast(stage, name, done, left, gradients, seconds=None, size_bytes=None, objects=objects, device="")


class _Measurements:
    """Markers of committed parts: in the plan's scopes, or else of the same work on other data or in another store."""

    def __init__(self, ledger: Ledger, committed: CommittedParts, ledgers: Sequence[Ledger]) -> None:
        self._ledger = ledger
        self._committed = committed
        self._datasets = [
            (other, dataset)
            for other in ledgers
            for dataset in sorted({str(other.read_plan(key)["dataset"]) for key in other.plan_keys()})
        ]

    def markers(self, units: Sequence[Unit]) -> list[Marker]:
        """Some markers from each unit's scope."""
        return [marker for unit in units for marker in self._own(unit) or self._others(unit)]

    def _own(self, unit: Unit) -> list[Marker]:
        """Markers of a scope, of shards far apart."""
        shards = [(name, *parts) for name, parts in self._committed.scopes[unit.scope].items() if parts[1]]
        return [
            self._ledger.read_marker(replace(unit, part=Part(shard, (bits & -bits).bit_length() - 1, count)))
            for shard, count, bits in spread(shards)
        ]

    def _others(self, unit: Unit) -> list[Marker]:
        """Markers of the same source, attack and target on any data of the stores, such as a trial's."""

        def read_all() -> Iterator[Marker]:
            for ledger, dataset in self._datasets:
                for other in ledger.list_units(replace(unit, dataset=dataset).scope):
                    yield ledger.read_marker(other)

        return list(itertools.islice(read_all(), SAMPLES))


def _with_measurements(work: WorkForecast, markers: Sequence[Marker]) -> WorkForecast:
    """Work with the time and size per image of some markers, if there are any."""
    images = sum(_image_count(marker) for marker in markers)
    return replace(
        work,
        seconds=sum(float(marker.fact("seconds")) for marker in markers) / images if images else None,
        size_bytes=sum(marker.size_bytes for marker in markers) / images if images else None,
        device=str(markers[0].fact("device")) if markers else "",
    )


def _fill_in_unmeasured(works: Sequence[WorkForecast], attacks: Sequence[Unit]) -> list[WorkForecast]:
    """Gives unmeasured attacks the time per gradient of the source's other attacks, and the size per image of any."""
    sources = dict(zip((work.name for work in works[1:]), (unit.source for unit in attacks), strict=False))
    per_gradient: dict[str, tuple[float, str]] = {}
    for work in works:
        if work.seconds is not None and work.gradients:
            per_gradient.setdefault(sources[work.name], (work.seconds / work.gradients, work.device))
    sizes: Mapping[str, float] = {work.stage: work.size_bytes for work in works if work.size_bytes is not None}

    def filled_in(work: WorkForecast) -> WorkForecast:
        size = sizes.get(work.stage) if work.size_bytes is None else work.size_bytes
        measured = per_gradient.get(sources.get(work.name, ""))
        if work.seconds is None and work.gradients and measured is not None:
            seconds, device = measured
            return replace(work, seconds=seconds * work.gradients, size_bytes=size, device=device)
        return replace(work, size_bytes=size)

    return [filled_in(work) for work in works]


def _image_count(marker: Marker) -> int:
    facts = marker.facts
    return int(facts["n"] if "n" in facts else facts["n_ok"])
