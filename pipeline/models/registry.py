"""Weights beside the results: a model is resolved once, and from then on loaded by digest.

A hub's tag or a checkpoint's file may move while a run of days goes on. So the driver loads each model once, stores
its weights under their own hash, and records what the recipe's words meant; workers, later runs and audits read those.
A thousand workers ask the store, never a hub.

    models/FINGERPRINT.json        what a recipe's entry was resolved to
    weights/SHA256.safetensors     the weights
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from pipeline.attack.ensemble import Ensemble
from pipeline.errors import IntegrityError, MissingError, WeightsError
from pipeline.ledger import fingerprint, named
from pipeline.models import load as models
from pipeline.models.classifier import Classifier, state_digest
from pipeline.models.defenses import Ready
from pipeline.models.load import EnsembleSpec, ModelSpec, TargetSpec
from pipeline.models.purifiers import Purified, Purifier
from pipeline.storage import Storage, sha256, split


@dataclass(frozen=True)
class Model:
    """A model with its identity resolved.

    Attributes:
        spec: What the recipe says.
        id: Name and fingerprint of the identity, as it stands in keys.
        digest: sha256 of the state dict.
        identity: Everything that determines its output.
        weights: sha256 of the stored weights file.
        built_from: What the hub said that the network is, where the name does not say it; see `models.blueprint`.
        purifiers: Of the purifiers that it is behind: checkpoint → sha256 of the stored weights file.
    """

    spec: ModelSpec
    id: str
    digest: str
    identity: dict[str, Any]
    weights: str
    built_from: dict[str, Any]
    purifiers: dict[str, str]

    @property
    def members(self) -> tuple["Model", ...]:
        """The networks that it consists of: itself."""
        return (self,)


@dataclass(frozen=True)
class Team:
    """An ensemble with its members resolved.

    Attributes:
        spec: What the recipe says.
        members: Its networks.
    """

    spec: EnsembleSpec
    members: tuple[Model, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines its output."""
        return {"fuse": self.spec.fuse, "ensemble": [member.identity for member in self.members]}

    @property
    def id(self) -> str:
        """Name and fingerprint of the identity, as it stands in keys."""
        return named(self.spec.name, self.identity)


Source = Model | Team


def resolve_source(spec: ModelSpec | EnsembleSpec, storage: Storage, *, classes: int) -> Source:
    """What a recipe's source stands for; see `resolve`."""
    if isinstance(spec, ModelSpec):
        return resolve(spec, storage, classes=classes)
    return Team(spec, tuple(resolve(member, storage, classes=classes) for member in spec.ensemble))


def resolve(spec: ModelSpec, storage: Storage, *, classes: int) -> Model:
    """What a recipe's entry stands for: by the store's record of it, or, the first time, by loading it.

    A tag's record holds for ever. A checkpoint's holds while the file is the same; another file is another model.

    Raises:
        WeightsError: The weights cannot be had, or do not fit.
        StorageError: The store failed.
    """
    # Of the network alone: under another name, or behind defenses, it is the same one.
    network = {each.name: getattr(spec, each.name) for each in fields(ModelSpec) if each.name != "name"}

    def loaded() -> tuple[dict[str, Any], bytes]:
        classifier = models.load(spec, classes=classes)
        facts = {"identity": models.identity(spec, classifier), "built_from": models.blueprint(spec)}
        return facts, models.dump(classifier.network)

    record = _recorded({**network, "classes": classes}, spec.checkpoint, storage, loaded)
    purifiers = {each.checkpoint: _resolve_purifier(each, storage) for each in purifiers_of(spec)}
    digests = {checkpoint: found["digest"] for checkpoint, found in purifiers.items()}
    identity = {**record["identity"], **models.behind(spec, digests)}
    return Model(
        spec,
        named(spec.name, identity),
        identity["digest"],
        identity,
        record["weights"],
        record.get("built_from", {}),
        {checkpoint: found["weights"] for checkpoint, found in purifiers.items()},
    )


def purifiers_of(spec: ModelSpec) -> list[Purifier]:
    """The purifiers that a model is behind."""
    return [each for each in spec.defenses if isinstance(each, Purifier)] if isinstance(spec, TargetSpec) else []


def _resolve_purifier(purifier: Purifier, storage: Storage) -> dict[str, Any]:
    def loaded() -> tuple[dict[str, Any], bytes]:
        network = models.load_purifier(purifier)
        return {"digest": state_digest(network)}, models.dump(network)

    words = {"purifier": type(purifier).__name__, "checkpoint": purifier.checkpoint}
    try:
        return _recorded(words, purifier.checkpoint, storage, loaded)
    except WeightsError as error:
        raise WeightsError(f"{error}; wanted is {purifier.wanted}") from error


def _recorded(
    words: dict[str, Any],
    checkpoint: str | None,
    storage: Storage,
    loaded: Callable[[], tuple[dict[str, Any], bytes]],
) -> dict[str, Any]:
    """The store's record of what a recipe's words meant, made by loading it where there is none that holds."""
    key, file = f"models/{fingerprint(words)}.json", _file_version(checkpoint)
    try:
        record = storage.record(key)
    except MissingError:
        record = {}
    if not record or record["file"] != file or not _stand(storage, record["weights"]):
        facts, data = loaded()
        record = {**facts, "weights": sha256(data), "file": file}
        storage.put_once(_key(record["weights"]), data)
        if not storage.put_record(key, record, once=checkpoint is None):
            record = storage.record(key)  # another run resolved the tag first
    return record


def load_source(source: Source, storage: Storage, *, classes: int, device: torch.device) -> Classifier | Ensemble:
    """A resolved source on its device, from the store; see `load`."""
    loaded = [load(member, storage, classes=classes, device=device) for member in source.members]
    return Ensemble(loaded, source.spec.fuse) if isinstance(source, Team) else loaded[0]


def load(model: Model, storage: Storage, *, classes: int, device: torch.device) -> Classifier:
    """A resolved model on its device, from the store, made fast for it; see `load_plain`."""
    return load_plain(model, storage, classes=classes).quicken(device)


def load_plain(model: Model, storage: Storage, *, classes: int) -> Classifier:
    """A resolved model as its architecture has it, from the store, on the CPU.

    Raises:
        WeightsError: The weights are gone or damaged, or do not fit the architecture here.
    """
    data = _stored(model.spec.name, model.weights, storage)
    own = ("model", "digest", "defenses", "defense_seed")
    preprocessing = {name: value for name, value in model.identity.items() if name not in own}
    classifier = models.restore(model.spec, data, preprocessing, built_from=model.built_from, classes=classes)
    if classifier.digest != model.digest:
        raise WeightsError(
            f"{model.spec.name}: the stored weights load to {classifier.digest[:12]}, not to {model.digest[:12]}: "
            "another version of timm or torch? see the markers' versions"
        )
    return classifier


def load_defenses(model: Model, storage: Storage, *, device: torch.device) -> tuple[Ready, ...]:
    """What a resolved target is behind, its purifiers with their networks on a device.

    Raises:
        WeightsError: A purifier's weights are gone or damaged.
    """
    spec = model.spec
    assert isinstance(spec, TargetSpec)
    found: list[Ready] = []
    for each in spec.defenses:
        if isinstance(each, Purifier):
            data = _stored(each.checkpoint, model.purifiers[each.checkpoint], storage)
            found.append(Purified(each, models.restore_purifier(each, data).to(device)))
        else:
            found.append(each)
    return tuple(found)


def _stored(name: str, weights: str, storage: Storage) -> bytes:
    try:
        return storage.get(_key(weights), sha256_hex=weights)
    except (MissingError, IntegrityError) as error:
        raise WeightsError(f"{name}: its weights: {error}") from error


def _stand(storage: Storage, weights: str) -> bool:
    try:
        storage.stat(_key(weights))
    except MissingError:
        return False
    return True


def _key(weights: str) -> str:
    return f"weights/{weights}.safetensors"


def _file_version(checkpoint: str | None) -> str:
    """The size and the store's tag of a checkpoint file; empty for a tag.

    Raises:
        WeightsError: The file is not there.
    """
    if checkpoint is None:
        return ""
    folder, name = split(checkpoint)
    try:
        found = Storage(folder).stat(name)
    except MissingError as error:
        raise WeightsError(f"checkpoint {error}") from error
    return f"{found.size_bytes} {found.version}"
