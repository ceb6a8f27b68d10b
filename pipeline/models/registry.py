"""Model registry: weights stored beside the results, resolved once from a recipe and then loaded by digest.

A hub's tag or a checkpoint file may change while a run of days goes on. So the driver loads each model once, stores its
weights under their hash, and records what the recipe's settings resolved to; workers, later runs and audits read these.
A thousand workers read the store, never a hub.

    models/FINGERPRINT.json        what a recipe's entry was resolved to
    weights/SHA256.safetensors     the weights
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.attack.ensemble import Ensemble
from pipeline.errors import IntegrityError, MissingError, WeightsError
from pipeline.ledger import fingerprint, make_id
from pipeline.models import load
from pipeline.models.checkpoint import serialize_weights
from pipeline.models.classifier import Classifier, state_digest
from pipeline.models.defenses import ReadyDefense
from pipeline.models.purifiers import LoadedPurifier, Purifier
from pipeline.models.spec import EnsembleSpec, ModelSpec, TargetSpec, recorded_settings
from pipeline.storage import Storage, sha256, split_url


@dataclass(frozen=True)
class ResolvedModel:
    """A model with its identity resolved.

    Attributes:
        spec: The recipe's settings.
        id: Name and fingerprint of the identity, as in the store's keys.
        digest: sha256 of the state dict.
        identity: Everything that determines the model's output.
        weights_sha256: sha256 of the stored weights file.
        hub_config: A hub model's architecture and arguments; see `load.hub_config`.
        purifier_weights: sha256 of the stored weights file of each of its purifiers, by checkpoint.
    """

    spec: ModelSpec
    id: str
    digest: str
    identity: dict[str, Any]
    weights_sha256: str
    hub_config: dict[str, Any]
    purifier_weights: dict[str, str]

    @property
    def members(self) -> tuple["ResolvedModel", ...]:
        """The networks of this source: only itself."""
        return (self,)


@dataclass(frozen=True)
class EnsembleModel:
    """An ensemble with its members resolved.

    Attributes:
        spec: The recipe's settings.
        members: Its networks.
    """

    spec: EnsembleSpec
    members: tuple[ResolvedModel, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the ensemble's output."""
        return {"fuse": self.spec.fuse, "ensemble": [member.identity for member in self.members]}

    @property
    def id(self) -> str:
        """Name and fingerprint of the identity, as in the store's keys."""
        return make_id(self.spec.name, self.identity)


ResolvedSource = ResolvedModel | EnsembleModel


def resolve_source(spec: ModelSpec | EnsembleSpec, storage: Storage, *, classes: int) -> ResolvedSource:
    """Resolves a recipe's source, a model or an ensemble; see `resolve_model`."""
    if isinstance(spec, ModelSpec):
        return resolve_model(spec, storage, classes=classes)
    return EnsembleModel(spec, tuple(resolve_model(member, storage, classes=classes) for member in spec.ensemble))


def resolve_model(spec: ModelSpec, storage: Storage, *, classes: int) -> ResolvedModel:
    """Resolves a recipe's model by the store's record of it or, the first time, by loading it.

    A tag's record is valid forever. A checkpoint's is valid while the file is the same; another file is another model.

    Raises:
        WeightsError: The weights cannot be loaded, or do not fit.
        StorageError: The store failed.
    """
    # Only the network's settings: under another name, or behind defenses, it is the same network.
    settings = recorded_settings(spec)
    del settings["name"]

    def load_and_describe() -> tuple[dict[str, Any], bytes]:
        classifier = load.load_model(spec, classes=classes)
        facts = {"identity": load.model_identity(spec, classifier), "built_from": load.hub_config(spec)}
        return facts, serialize_weights(classifier.network)

    record = _record({**settings, "classes": classes}, spec.checkpoint, storage, load_and_describe)
    purifiers = {
        purifier.checkpoint: _resolve_purifier(purifier, storage)
        for purifier in (spec.defenses if isinstance(spec, TargetSpec) else ())
        if isinstance(purifier, Purifier)
    }
    digests = {checkpoint: stored["digest"] for checkpoint, stored in purifiers.items()}
    identity = {**record["identity"], **load.defense_identity(spec, digests)}
    return ResolvedModel(
        spec,
        make_id(spec.name, identity),
        identity["digest"],
        identity,
        record["weights"],
        record.get("built_from", {}),
        {checkpoint: stored["weights"] for checkpoint, stored in purifiers.items()},
    )


def _resolve_purifier(purifier: Purifier, storage: Storage) -> dict[str, Any]:
    def load_and_describe() -> tuple[dict[str, Any], bytes]:
        network = load.load_purifier(purifier)
        return {"digest": state_digest(network)}, serialize_weights(network)

    settings = {"purifier": type(purifier).__name__, "checkpoint": purifier.checkpoint}
    try:
        return _record(settings, purifier.checkpoint, storage, load_and_describe)
    except WeightsError as error:
        raise WeightsError(f"{error}; wanted is {purifier.published_file}") from error


def _record(
    settings: dict[str, Any],
    checkpoint: str | None,
    storage: Storage,
    load_and_describe: Callable[[], tuple[dict[str, Any], bytes]],
) -> dict[str, Any]:
    """The store's record of settings; without a valid record, loads the model, and stores its weights and a record."""
    key = f"models/{fingerprint(settings)}.json"
    file = _file_version(checkpoint)
    try:
        record = storage.get_record(key)
    except MissingError:
        record = {}
    if not record or record["file"] != file or not _has_weights(storage, record["weights"]):
        facts, weights = load_and_describe()
        record = {**facts, "weights": sha256(weights), "file": file}
        storage.put_if_absent(_weights_key(record["weights"]), weights)
        if not storage.put_record(key, record, if_absent=checkpoint is None):
            record = storage.get_record(key)  # another run resolved the tag first
    return record


def load_source(
    source: ResolvedSource, storage: Storage, *, classes: int, device: torch.device
) -> Classifier | Ensemble:
    """Loads a resolved source from the store onto a device, optimized for it; see `load_unoptimized`."""
    networks = [load_resolved(member, storage, classes=classes, device=device) for member in source.members]
    return Ensemble(networks, source.spec.fuse) if isinstance(source, EnsembleModel) else networks[0]


def load_resolved(model: ResolvedModel, storage: Storage, *, classes: int, device: torch.device) -> Classifier:
    """Loads a resolved model from the store onto a device, optimized for it; see `load_unoptimized`."""
    return load_unoptimized(model, storage, classes=classes).optimize_for(device)


def load_unoptimized(model: ResolvedModel, storage: Storage, *, classes: int) -> Classifier:
    """Loads a resolved model from the store onto the CPU, with its architecture unchanged.

    Raises:
        WeightsError: The weights are missing or damaged, or do not fit the architecture of this timm and torch.
    """
    weights = _read_weights(model.spec.name, model.weights_sha256, storage)
    not_preprocessing = ("model", "digest", "args", "defenses", "defense_seed")
    preprocessing = {name: value for name, value in model.identity.items() if name not in not_preprocessing}
    classifier = load.classifier_from_weights(
        model.spec,
        weights,
        preprocessing,
        args=model.identity.get("args", {}),
        hub_config=model.hub_config,
        classes=classes,
    )
    if classifier.digest != model.digest:
        raise WeightsError(
            f"{model.spec.name}: the stored weights load to {classifier.digest[:12]}, not to {model.digest[:12]}: "
            "another version of timm or torch? see the markers' versions"
        )
    return classifier


def load_defenses(model: ResolvedModel, storage: Storage, *, device: torch.device) -> tuple[ReadyDefense, ...]:
    """The defenses of a resolved target, with its purifiers' networks loaded from the store onto a device.

    Raises:
        WeightsError: A purifier's weights are missing or damaged.
    """
    spec = model.spec
    assert isinstance(spec, TargetSpec)
    defenses: list[ReadyDefense] = []
    for defense in spec.defenses:
        if isinstance(defense, Purifier):
            weights = _read_weights(defense.checkpoint, model.purifier_weights[defense.checkpoint], storage)
            defenses.append(LoadedPurifier(defense, load.purifier_from_weights(defense, weights).to(device)))
        else:
            defenses.append(defense)
    return tuple(defenses)


def _read_weights(name: str, weights_sha256: str, storage: Storage) -> bytes:
    try:
        return storage.get(_weights_key(weights_sha256), sha256_hex=weights_sha256)
    except (MissingError, IntegrityError) as error:
        raise WeightsError(f"{name}: its weights: {error}") from error


def _has_weights(storage: Storage, weights_sha256: str) -> bool:
    try:
        storage.stat(_weights_key(weights_sha256))
    except MissingError:
        return False
    return True


def _weights_key(weights_sha256: str) -> str:
    return f"weights/{weights_sha256}.safetensors"


def _file_version(checkpoint: str | None) -> str:
    """Size and version (as the store reports it) of a checkpoint file; empty for a tag.

    Raises:
        WeightsError: The file does not exist.
    """
    if checkpoint is None:
        return ""
    folder, name = split_url(checkpoint)
    try:
        file = Storage(folder).stat(name)
    except MissingError as error:
        raise WeightsError(f"checkpoint {error}") from error
    return f"{file.size_bytes} {file.version}"
