"""What a run has to make: a recipe's names, resolved to identities."""

import hashlib
import pickle
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pipeline.attack.recipe import Attack, provenance
from pipeline.data import shards
from pipeline.data.codec import Preparation
from pipeline.data.sample import Part, ShardFile
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger, Unit, fingerprint, named
from pipeline.models import registry
from pipeline.models.load import EnsembleSpec, ModelSpec, TargetSpec
from pipeline.models.registry import Model, Source
from pipeline.plan.external import Foreign, ForeignAttack
from pipeline.plan.outline import Outline, Prepared, Take
from pipeline.storage import Storage


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

    @property
    def prepared(self) -> dict[str, Any]:
        """What determines the prepared images, beside which shards they come from, as JSON values."""
        return {
            **asdict(self.preparation),
            "part_size": self.part_size,
            "classes": self.classes,
            "fraction": self.fraction,
            "seed": self.seed,
        }

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
        batch_size: Images per gradient, part of what makes a rerun byte-identical; `auto` is what a worker finds
            fastest.
    """

    data: DataSpec
    sources: tuple[ModelSpec | EnsembleSpec | Foreign, ...]
    attacks: tuple[Attack | ForeignAttack, ...]
    targets: tuple[TargetSpec, ...]
    batch_size: int | Literal["auto"] = 32


@dataclass(frozen=True)
class Plan:
    """A job with every name resolved to an identity.

    Attributes:
        job: What was asked for.
        dataset: Identity of the prepared images.
        takes: The shards that are worked on.
        shards: The names of all, also of those that a run leaves alone.
        sources: By the job's order.
        attacks: Identity → attack.
        targets: By the job's order.
    """

    job: Job
    dataset: str
    takes: tuple[Take, ...]
    shards: tuple[str, ...]
    sources: tuple[Source | Foreign, ...]
    attacks: dict[str, Attack | ForeignAttack]
    targets: tuple[Model, ...]

    @property
    def outline(self) -> Outline:
        """The plan by its names."""
        return Outline(self.describe(), self.takes)

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values: what `verify` holds the store against."""
        return {
            "dataset": self.dataset,
            "data": {"name": self.job.data.name, **self.job.data.prepared},
            "shards": list(self.shards),
            "sources": {model.id: model.identity for model in self.sources},
            "attacks": {identity: described(attack) for identity, attack in self.attacks.items()},
            "targets": {model.id: model.identity for model in self.targets},
        }


def resolve(job: Job, storage: Storage, *, since: float = 0.0) -> Plan:
    """Finds the shards and settles what every model is, so that what cannot work fails here and by name.

    Args:
        job: What is asked for.
        storage: Where results go: the models' weights are kept there, and read from there the next time.
        since: Only shards written at this time or later are worked on, in seconds since 1970; there may be none. The
            plan is the same as without, so that what is missing of older ones is known to be.

    Raises:
        MissingError: A shard does not exist.
        WeightsError: A model's weights cannot be had, or do not fit.
    """
    found, classes = shards.find(job.data.shards), job.data.classes
    takes = _takes(job.data, found)
    # The first N images depend on which shards come first, all of them do not.
    limited = {"limit": job.data.limit, "shards": [shard.name for shard in found]} if job.data.limit else {}
    return Plan(
        job=job,
        dataset=named(job.data.name, {**job.data.prepared, **limited}),
        takes=tuple(take for take in takes if take.shard.modified >= since),
        shards=tuple(take.shard.name for take in takes),
        sources=tuple(
            spec if isinstance(spec, Foreign) else registry.resolve_source(spec, storage, classes=classes)
            for spec in job.sources
        ),
        attacks={named(attack.name, described(attack)): attack for attack in job.attacks},
        targets=tuple(registry.resolve(spec, storage, classes=classes) for spec in job.targets),
    )


def prepare(job: Job, storage: Storage, *, since: float = 0.0) -> Prepared:
    """What a driver is given: a job resolved, on shards that are what they were; raises what those two steps raise."""
    plan = resolve(job, storage, since=since)
    require_unchanged(plan, Ledger(storage))
    return seal(plan)


def seal(plan: Plan) -> Prepared:
    """A plan as a driver holds it."""
    return Prepared(plan.outline, pickle.dumps(replace(plan, takes=(), shards=())))


def unseal(sealed: bytes) -> Plan:
    """The plan that a driver was given, without its shards."""
    plan = pickle.loads(sealed)  # noqa: S301  # this run's own, never off a disk or a store
    assert isinstance(plan, Plan)
    return plan


def described(attack: Attack | ForeignAttack) -> dict[str, Any]:
    """Everything that determines an attack's pixels, as JSON values."""
    return attack.provenance() if isinstance(attack, ForeignAttack) else provenance(attack)


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
