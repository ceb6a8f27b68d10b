"""Plans: a job with its shards found and its models resolved to identities."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.attack.recipe import Attack, provenance
from pipeline.data import shard_list, shards
from pipeline.data.sample import Part, ShardFile
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger, Unit, fingerprint, make_id
from pipeline.models import registry
from pipeline.models.registry import ResolvedModel, ResolvedSource
from pipeline.plan.data_spec import DataSpec
from pipeline.plan.external import ExternalAttack, ExternalImages
from pipeline.plan.job import Job
from pipeline.plan.local_shards import count_parts
from pipeline.plan.outline import Outline, PickledPlan, ShardSelection
from pipeline.storage import Storage


@dataclass(frozen=True)
class Plan:
    """A job with every name resolved to an identity.

    Attributes:
        job: The job.
        dataset: Identity of the prepared images.
        selections: The shards that a run works on.
        shard_names: The names of all shards of the data, including those that a run skips.
        sources: The models attacked, in the job's order.
        attacks: Identity → attack.
        targets: The models scored, in the job's order.
    """

    job: Job
    dataset: str
    selections: tuple[ShardSelection, ...]
    shard_names: tuple[str, ...]
    sources: tuple[ResolvedSource | ExternalImages, ...]
    attacks: dict[str, Attack | ExternalAttack]
    targets: tuple[ResolvedModel, ...]

    @property
    def outline(self) -> Outline:
        """The plan's identities and shards, without models."""
        return Outline(self.to_record(), self.selections)

    def to_record(self) -> dict[str, Any]:
        """The plan as JSON values, as the store keeps it and `verify` compares the store with it."""
        return {
            "dataset": self.dataset,
            "data": {"name": self.job.data.name, **self.job.data.image_settings},
            "shards": list(self.shard_names),
            "sources": {model.id: model.identity for model in self.sources},
            "attacks": {identity: attack_provenance(attack) for identity, attack in self.attacks.items()},
            "targets": {model.id: model.identity for model in self.targets},
        }


def resolve_job(job: Job, storage: Storage, *, since: float = 0.0) -> Plan:
    """Finds a job's shards and resolves its models; a missing shard or an unusable model fails here, by name.

    Args:
        job: The job.
        storage: Where results go: the models' weights are kept there, and read from there the next time.
        since: Works only on shards written at this time or later, in seconds since 1970; there may be none. The plan's
            record is the same as without, so that results missing from older shards still count as missing.

    Raises:
        MissingError: A shard does not exist.
        WeightsError: A model's weights cannot be had, or do not fit.
    """
    return _resolve_models(job, _find_shards(job.data, since), storage)


def _resolve_models(job: Job, found: "_Found", storage: Storage) -> Plan:
    classes = job.data.classes
    return Plan(
        job=job,
        dataset=found.dataset,
        selections=found.selections,
        shard_names=found.names,
        sources=tuple(
            spec if isinstance(spec, ExternalImages) else registry.resolve_source(spec, storage, classes=classes)
            for spec in job.sources
        ),
        attacks={make_id(attack.name, attack_provenance(attack)): attack for attack in job.attacks},
        targets=tuple(registry.resolve_model(spec, storage, classes=classes) for spec in job.targets),
    )


def prepare_plan(job: Job, storage: Storage, *, since: float = 0.0) -> PickledPlan:
    """Resolves a job and checks its shards against the store, for a driver; see `resolve_job`.

    Raises:
        RecipeError: No image can be used, see `count_parts`; or a shard has changed since the store's results were
            made, see `require_unchanged_shards`.
    """
    found = _find_shards(job.data, since)
    ledger = Ledger(storage)
    # Before models, which may take minutes to download.
    part_counts = count_parts(found.selections, job, is_new=_is_new(job, found.dataset, ledger))
    plan = _resolve_models(job, found, storage)
    require_unchanged_shards(plan, ledger)
    return replace(pickle_plan(plan), part_counts=part_counts)


def _is_new(job: Job, dataset: str, ledger: Ledger) -> bool:
    """Whether nothing was made of a dataset before; for another program's images, nothing of these."""
    external = [source.id for source in job.sources if isinstance(source, ExternalImages)]
    made = [f"adversarial/{dataset}/{source}" for source in external] or [f"original/{dataset}"]
    return not any(True for prefix in made for _ in ledger.list_units(prefix))


def pickle_plan(plan: Plan) -> PickledPlan:
    """A plan for a driver, which loads neither models nor torch."""
    return PickledPlan(plan.outline, pickle.dumps(replace(plan, selections=(), shard_names=())))


def unpickle_plan(pickled: bytes) -> Plan:
    """The plan that `pickle_plan` pickled, without its shards."""
    plan = pickle.loads(pickled)  # noqa: S301  # this run's own, never off a disk or a store
    assert isinstance(plan, Plan)
    return plan


def attack_provenance(attack: Attack | ExternalAttack) -> dict[str, Any]:
    """Everything that determines an attack's pixels, as JSON values."""
    return attack.provenance() if isinstance(attack, ExternalAttack) else provenance(attack)


def require_unchanged_shards(plan: Plan, ledger: Ledger) -> None:
    """Refuses shards whose content differs from that of the store's results, and records new shards.

    The version that the shards' storage reports settles it without reading a shard; where the version differs (a copied
    file has a new one), the bytes are read and hashed.

    Raises:
        RecipeError: A shard of the same name had other content when its originals were made.
    """
    storage = ledger.storage
    folder = f"inputs/{plan.dataset}"
    recorded: dict[str, list[list[Any]]] = {}
    for stored in storage.list(folder):
        for name, version in storage.get_record(stored.key)["shards"].items():
            recorded.setdefault(name, []).append(version)
    new: dict[str, list[Any]] = {}
    for shard in (selection.shard for selection in plan.selections):
        version = [shard.size_bytes, shard.version]
        if version not in recorded.get(shard.name, ()):
            if shard.name in recorded:
                _require_same_bytes(shard, Unit(plan.dataset, Part(shard.name, 0, 1)).scope, ledger)
            new[shard.name] = version
    if new:
        storage.put_record(f"{folder}/{fingerprint(new)}.json", {"shards": new})


def _require_same_bytes(file: ShardFile, scope: str, ledger: Ledger) -> None:
    """Compares a shard's hash with the one in the marker of its first committed part, if there is one."""
    first = next(iter(ledger.list_units(f"{scope}/{file.name}")), None)
    if first is None:
        return
    used = ledger.read_marker(first).fact("shard")
    with shards.download_shard(file) as shard:
        if shard.sha256 != used["sha256"]:
            raise RecipeError(
                f"shards: {file.url} is not the {file.name!r} that this store's results come from ({used['url']}): "
                "rename the shard, give data.name another value, or use another store"
            )


@dataclass(frozen=True)
class _Found:
    """A plan's attributes of the same names, and its shards, as `shard_names`."""

    dataset: str
    selections: tuple[ShardSelection, ...]
    names: tuple[str, ...]


def _find_shards(data: DataSpec, since: float) -> _Found:
    files = shard_list.find_shards(data.shards)
    selections = _select_shards(data, files)
    # The first N images depend on the order of the shards; all images do not.
    limited = {"limit": data.limit, "shards": [file.name for file in files]} if data.limit else {}
    return _Found(
        make_id(data.name, {**data.image_settings, **limited}),
        tuple(selection for selection in selections if selection.shard.modified >= since),
        tuple(selection.shard.name for selection in selections),
    )


def _select_shards(data: DataSpec, files: Sequence[ShardFile]) -> tuple[ShardSelection, ...]:
    """All shards; or, with a limit, those that hold the first images: these are read, to count their samples."""
    if data.limit is None:
        return tuple(ShardSelection(file, None) for file in files)
    selections: list[ShardSelection] = []
    remaining = data.limit
    for file in files:
        with shards.download_shard(file) as shard:
            count = min(len(shard), remaining)
        selections.append(ShardSelection(file, count))
        remaining -= count
        if remaining == 0:
            break
    return tuple(selections)
