"""What a run has to make, and what of it is missing: a function of the recipe and the store alone."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline import shards, weights
from pipeline.attack.recipe import Attack, provenance
from pipeline.codec import Preparation
from pipeline.errors import RecipeError
from pipeline.foreign import Foreign, ForeignAttack
from pipeline.ledger import Committed, Ledger, Unit, fingerprint, named
from pipeline.models import EnsembleSpec, ModelSpec, TargetSpec
from pipeline.sample import Part
from pipeline.shards import ShardFile
from pipeline.storage import Storage
from pipeline.weights import Model, Source


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
        sources: The models attacked, or a folder of another program's images.
        attacks: What is done to each image, from each source.
        targets: The models scored.
        batch_size: Images per gradient; part of what makes a rerun byte-identical.
    """

    data: DataSpec
    sources: tuple[ModelSpec | EnsembleSpec | Foreign, ...]
    attacks: tuple[Attack | ForeignAttack, ...]
    targets: tuple[TargetSpec, ...]
    batch_size: int = 32


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
    sources: tuple[Source | Foreign, ...]
    attacks: dict[str, Attack | ForeignAttack]
    targets: tuple[Model, ...]

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values: what `verify` holds the store against."""
        return {
            "dataset": self.dataset,
            "shards": [take.shard.name for take in self.takes],
            "sources": {model.id: model.identity for model in self.sources},
            "attacks": {identity: described(attack) for identity, attack in self.attacks.items()},
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


def resolve(job: Job, storage: Storage) -> Plan:
    """Finds the shards and settles what every model is, so that what cannot work fails here and by name.

    Args:
        job: What is asked for.
        storage: Where results go: the models' weights are kept there, and read from there the next time.

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
    classes = job.data.classes
    return Plan(
        job=job,
        dataset=named(job.data.name, prepared),
        takes=takes,
        sources=tuple(
            spec if isinstance(spec, Foreign) else weights.resolve_source(spec, storage, classes=classes)
            for spec in job.sources
        ),
        attacks={named(attack.name, described(attack)): attack for attack in job.attacks},
        targets=tuple(weights.resolve(spec, storage, classes=classes) for spec in job.targets),
    )


def described(attack: Attack | ForeignAttack) -> dict[str, Any]:
    """Everything that determines an attack's pixels, as JSON values."""
    return attack.provenance() if isinstance(attack, ForeignAttack) else provenance(attack)


def pending(plan: Plan, committed: Committed, *, workers: int = 1) -> list[Item]:
    """The items that something is missing from.

    Args:
        plan: What is to be made.
        committed: What has been; see `scopes`.
        workers: How many generators there are: fewer shards than these are split into strided items.
    """
    stride = -(-workers // len(plan.takes))
    items = (
        Item(take, source.id, offset, stride)
        for source in plan.sources
        for take in plan.takes
        for offset in range(stride)
    )
    wanted = {source.id: scopes(plan, source.id) for source in plan.sources}
    return [item for item in items if not _complete(item, wanted[item.source], committed)]


def complete(plan: Plan, item: Item, committed: Committed) -> bool:
    """Whether every unit of an item stands."""
    return _complete(item, scopes(plan, item.source), committed)


def _complete(item: Item, wanted: Sequence[str], committed: Committed) -> bool:
    shard = item.take.shard.name
    count = committed.count(shard)
    if count is None:
        return False
    parts = sum(1 << index for index in range(item.offset, count, item.stride))
    return all(committed.bits(scope, shard) & parts == parts for scope in wanted)


def scopes(plan: Plan, source: str) -> list[str]:
    """The markers' folders that a plan fills from one source."""
    return [unit.scope for unit in units(plan, source, Part("", 0, 1))]


def all_scopes(plan: Plan) -> list[str]:
    """The markers' folders that a plan fills."""
    return list(dict.fromkeys(scope for source in plan.sources for scope in scopes(plan, source.id)))


def require_unchanged(plan: Plan, ledger: Ledger) -> None:
    """Refuses shards that are not those that the store's results were made from, and records those that are new.

    The store's own tag settles it without reading a shard; where the tag is another (a copied file has a new one), the
    bytes are read and hashed.

    Raises:
        RecipeError: A shard of the same name had other content when its originals were made.
    """
    storage, folder = ledger.storage, f"inputs/{plan.dataset}"
    seen: dict[str, list[list[Any]]] = {}
    for stored in storage.list(folder):
        for name, versions in storage.record(stored.key)["shards"].items():
            seen.setdefault(name, []).append(versions)
    new: dict[str, list[Any]] = {}
    for shard in (take.shard for take in plan.takes):
        version = [shard.size_bytes, shard.version]
        if version not in seen.get(shard.name, ()):
            if shard.name in seen:
                _require_same_bytes(shard, Unit(plan.dataset, Part(shard.name, 0, 1)).scope, ledger)
            new[shard.name] = version
    if new:
        storage.put_record(f"{folder}/{fingerprint(new)}.json", {"shards": new})


def _require_same_bytes(shard: ShardFile, scope: str, ledger: Ledger) -> None:
    first = next(iter(ledger.units(f"{scope}/{shard.name}")), None)
    if first is None:
        return
    before = ledger.marker(first).fact("shard")
    with shards.spool(shard) as found:
        if found.sha256 != before["sha256"]:
            raise RecipeError(
                f"shards: {shard.url} is not the {shard.name!r} that this store's results come from ({before['url']}): "
                "rename the shard, give data.name another value, or use another store"
            )


def item_parts(item: Item, committed: Committed) -> list[Part] | None:
    """The parts of an item; None while no part of its shard is committed, so that their number is unknown."""
    shard = item.take.shard.name
    count = committed.count(shard)
    return None if count is None else [Part(shard, index, count) for index in range(item.offset, count, item.stride)]


def units(plan: Plan, source: str, part: Part) -> list[Unit]:
    """Everything that a part needs from one source: original, attacks, clean predictions, transfer results."""
    original = Unit(plan.dataset, part)
    adversarial = [replace(original, source=source, attack=attack) for attack in plan.attacks]
    return [
        original,
        *adversarial,
        *(replace(unit, target=target.id) for unit in (original, *adversarial) for target in plan.targets),
    ]


def _takes(data: DataSpec, found: Sequence[ShardFile]) -> tuple[Take, ...]:
    if data.limit is None:
        return tuple(Take(shard, None) for shard in found)
    takes, left = [], data.limit
    for shard in found:
        with shards.spool(shard) as spooled:
            count = len(spooled)
        takes.append(Take(shard, min(count, left)))
        left -= min(count, left)
        if left == 0:
            break
    return tuple(takes)
