"""What a run has to make, and what of it is missing: a function of the recipe and the store alone."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline import models, shards
from pipeline.attack.recipe import Attack, provenance
from pipeline.codec import Preparation
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger, Unit, named
from pipeline.models import ModelSpec
from pipeline.sample import Part
from pipeline.shards import ShardFile
from pipeline.storage import sha256


@dataclass(frozen=True)
class DataSpec:
    """Which images, and how they are prepared.

    Attributes:
        name: What results call the data.
        shards: URLs, brace ranges or globs of WebDataset tars.
        preparation: Resize and crop.
        part_size: Images in a part, the unit of commit.
        classes: Labels lie in [0, classes).
        fraction: The share of the images to take, chosen by a hash of (seed, shard, key).
        seed: Of that choice.
        limit: Only the first so many images of the shards, in order; a fraction is taken of these.
    """

    name: str
    shards: tuple[str, ...]
    preparation: Preparation = field(default_factory=Preparation)
    part_size: int = 512
    classes: int = 1000
    fraction: float = 1.0
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ValueError(f"name = {self.name[:30]!r}: at most 100 letters, digits, '.', '_' and '-'")
        if not self.shards:
            raise ValueError("shards: none are named")
        for field_name, least in (("part_size", 1), ("classes", 2)):
            if getattr(self, field_name) < least:
                raise ValueError(f"{field_name} = {getattr(self, field_name)}: must be at least {least}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction = {self.fraction}: must lie in (0, 1]")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit = {self.limit}: must be at least 1")

    def chooses(self, shard: str, key: str) -> bool:
        """Whether a sample belongs to the seeded subset."""
        digest = hashlib.sha256(f"{self.seed}/{shard}/{key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.fraction * 2**64


@dataclass(frozen=True)
class Job:
    """A recipe's content in the components' own terms.

    Attributes:
        data: The images.
        sources: The models attacked.
        attacks: What is done to each image, from each source.
        targets: The models scored.
        batch_size: Images per gradient; part of what makes a rerun byte-identical.
    """

    data: DataSpec
    sources: tuple[ModelSpec, ...]
    attacks: tuple[Attack, ...]
    targets: tuple[ModelSpec, ...]
    batch_size: int = 32


@dataclass(frozen=True)
class Model:
    """A model with its identity resolved: weights that were loaded once, and their digest."""

    spec: ModelSpec
    id: str
    digest: str
    identity: dict[str, Any]


@dataclass(frozen=True)
class Take:
    """A shard, and how many of its first images belong to the run (None: all)."""

    shard: ShardFile
    images: int | None


@dataclass(frozen=True)
class Plan:
    """A job with every name resolved to an identity.

    Attributes:
        job: What was asked for.
        dataset: Identity of the prepared images.
        takes: The shards.
        sources: By the job's order.
        attacks: Identity → attack.
        targets: By the job's order.
    """

    job: Job
    dataset: str
    takes: tuple[Take, ...]
    sources: tuple[Model, ...]
    attacks: dict[str, Attack]
    targets: tuple[Model, ...]

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values: what `verify` holds the store against."""
        return {
            "dataset": self.dataset,
            "shards": [take.shard.name for take in self.takes],
            "sources": {model.id: model.identity for model in self.sources},
            "attacks": {identity: provenance(attack) for identity, attack in self.attacks.items()},
            "targets": {model.id: model.identity for model in self.targets},
        }


@dataclass(frozen=True)
class Item:
    """What an actor is handed: every `stride`-th part of a shard from `offset`, with one source.

    Attributes:
        take: The shard.
        source: Identity of the source.
        offset: The first part.
        stride: 1 where the item is the whole shard.
    """

    take: Take
    source: str
    offset: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        """What to call it in messages."""
        parts = f" parts {self.offset}+{self.stride}n" if self.stride > 1 else ""
        return f"{self.take.shard.name}{parts} from {self.source}"


def resolve(job: Job) -> Plan:
    """Finds the shards and loads every model once, so that what cannot work fails here and by name.

    Raises:
        MissingError: A shard does not exist.
        WeightsError: A model's weights cannot be had, or do not fit.
    """
    found = shards.find(job.data.shards)
    takes = _takes(job.data, found)
    prepared = {
        **asdict(job.data.preparation),
        "part_size": job.data.part_size,
        "classes": job.data.classes,
        "fraction": job.data.fraction,
        "seed": job.data.seed,
        # The first N images depend on which shards come first, all of them do not.
        **({"limit": job.data.limit, "shards": [shard.name for shard in found]} if job.data.limit else {}),
    }
    loaded: dict[ModelSpec, Model] = {}
    for spec in (*job.sources, *job.targets):
        if spec not in loaded:
            loaded[spec] = _model(spec, job.data.classes)
    return Plan(
        job=job,
        dataset=named(job.data.name, prepared),
        takes=takes,
        sources=tuple(loaded[spec] for spec in job.sources),
        attacks={named(attack.name, provenance(attack)): attack for attack in job.attacks},
        targets=tuple(loaded[spec] for spec in job.targets),
    )


def pending(plan: Plan, ledger: Ledger, *, workers: int = 1) -> list[Item]:
    """The items that something is missing from, by one listing of each kind's markers.

    Args:
        plan: What is to be made.
        ledger: What has been.
        workers: How many generators there are: fewer shards than these are split into strided items.
    """
    committed: dict[str, set[Unit]] = defaultdict(set)
    for kind in ("original", "adversarial", "clean", "transfer"):
        for unit in ledger.units(f"{kind}/{plan.dataset}"):
            committed[unit.part.shard].add(unit)
    stride = -(-workers // len(plan.takes))
    items = (
        Item(take, source.id, offset, stride)
        for source in plan.sources
        for take in plan.takes
        for offset in range(stride)
    )
    return [item for item in items if not complete(plan, item, committed[item.take.shard.name])]


def complete(plan: Plan, item: Item, committed: Collection[Unit]) -> bool:
    """Whether every unit of an item is among the shard's committed ones."""
    parts = item_parts(item, committed)
    return parts is not None and all(unit in committed for part in parts for unit in units(plan, item.source, part))


def require_unchanged(plan: Plan, ledger: Ledger) -> None:
    """Refuses shards that are not those that the store's results were made from.

    The store's own tag settles it without reading a shard; where the tag is another (a copied file has a new one), the
    bytes are read and hashed.

    Raises:
        RecipeError: A shard of the same name had other content when its originals were made.
    """
    first = {unit.part.shard: unit for unit in ledger.units(f"original/{plan.dataset}")}
    for marker in ledger.markers(first[take.shard.name] for take in plan.takes if take.shard.name in first):
        shard = next(take.shard for take in plan.takes if take.shard.name == marker.unit.part.shard)
        before = marker.fact("shard")
        if (shard.size_bytes, shard.version) == (before["size_bytes"], before["version"]):
            continue
        if shard.size_bytes != before["size_bytes"] or sha256(shards.fetch(shard.url)) != before["sha256"]:
            raise RecipeError(
                f"shards: {shard.url} is not the {shard.name!r} that this store's results come from ({before['url']}): "
                "rename the shard, give data.name another value, or use another store"
            )


def item_parts(item: Item, committed: Collection[Unit]) -> list[Part] | None:
    """The parts of an item; None while no part of its shard is committed, so that their number is unknown."""
    known = next((unit.part for unit in committed if unit.kind == "original"), None)
    if known is None:
        return None
    return [replace(known, index=index) for index in range(item.offset, known.count, item.stride)]


def units(plan: Plan, source: str, part: Part) -> list[Unit]:
    """Everything that a part needs from one source: original, attacks, clean predictions, transfer results."""
    original = Unit(plan.dataset, part)
    adversarial = [replace(original, source=source, attack=attack) for attack in plan.attacks]
    return [
        original,
        *adversarial,
        *(replace(unit, target=target.id) for unit in (original, *adversarial) for target in plan.targets),
    ]


@dataclass(frozen=True)
class Progress:
    """How far a run is, by the store alone.

    Attributes:
        attacked: Adversarial parts committed.
        to_attack: Adversarial parts that the shards known so far will have.
        scored: Result files committed, clean and transfer.
        to_score: Result files that the shards known so far will have.
        shards_known: Shards whose number of parts is known.
        shards: All shards of the run.
    """

    attacked: int
    to_attack: int
    scored: int
    to_score: int
    shards_known: int
    shards: int


def progress(plan: Plan, ledger: Ledger) -> Progress:
    """How far a plan is, by one listing of each kind's markers."""
    names = {take.shard.name for take in plan.takes}
    known = {
        unit.part.shard: unit.part for unit in ledger.units(f"original/{plan.dataset}") if unit.part.shard in names
    }
    parts = [replace(part, index=index) for part in known.values() for index in range(part.count)]
    expected = {unit for source in plan.sources for part in parts for unit in units(plan, source.id, part)}
    done = {
        unit for kind in ("adversarial", "clean", "transfer") for unit in ledger.units(f"{kind}/{plan.dataset}")
    } & expected
    return Progress(
        attacked=sum(unit.kind == "adversarial" for unit in done),
        to_attack=sum(unit.kind == "adversarial" for unit in expected),
        scored=sum(bool(unit.target) for unit in done),
        to_score=sum(bool(unit.target) for unit in expected),
        shards_known=len(known),
        shards=len(names),
    )


def _takes(data: DataSpec, found: Sequence[ShardFile]) -> tuple[Take, ...]:
    if data.limit is None:
        return tuple(Take(shard, None) for shard in found)
    takes, left = [], data.limit
    for shard in found:
        count = sum(1 for _ in shards.records(shards.fetch(shard.url), name=shard.name))
        takes.append(Take(shard, min(count, left)))
        left -= min(count, left)
        if left == 0:
            break
    return tuple(takes)


def _model(spec: ModelSpec, classes: int) -> Model:
    classifier = models.load(spec, classes=classes)
    identity = models.identity(spec, classifier)
    return Model(spec, named(spec.name, identity), classifier.digest, identity)
