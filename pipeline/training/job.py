"""Training job: runs a training recipe on Ray Train and stores the trained weights, their figures and a card."""

import json
import logging
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.attack.recipe import provenance
from pipeline.dataset import snapshot
from pipeline.dataset.examples import Examples
from pipeline.dataset.snapshot import ImageFilter, Snapshot
from pipeline.engine import cluster
from pipeline.errors import CapacityError, GnpError, MissingError, RecipeError
from pipeline.ledger import fingerprint, open_ledger, slug
from pipeline.maintenance import releases
from pipeline.models import registry
from pipeline.models.spec import recorded_settings
from pipeline.storage import Storage
from pipeline.training import card
from pipeline.training.progress import TrainingProgress, report_progress
from pipeline.training.recipe import TrainingRecipe
from pipeline.training.records import TrainingRecords
from pipeline.training.worker import WorkerConfig, train_rank

log = logging.getLogger(__name__)

# How often workers that died are replaced; training then resumes from the last saved state.
_MAX_FAILURES = 5


@dataclass(frozen=True)
class TrainingOutcome:
    """Result of a training run.

    Attributes:
        run: Identity of the run.
        weights: Address of the trained weights, a checkpoint for the next recipe.
        card: Address of the card.
        epochs: Figures before training and after each epoch.
        trained: Whether anything was done; False if the same run had finished before.
    """

    run: str
    weights: str
    card: str
    epochs: list[dict[str, Any]]
    trained: bool


def train(
    recipe: TrainingRecipe,
    store: str,
    *,
    address: str | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
    on_notice: Callable[[str], None] = log.warning,
) -> TrainingOutcome:
    """Trains a model, resuming a run of the same recipe that was interrupted.

    A run reads one finalized version of each store from beginning to end. A recipe whose run has finished is trained
    again only once a store has another version.

    Args:
        recipe: Settings of the run.
        store: Store for the results.
        address: A Ray cluster; by default that of this process, or of RAY_ADDRESS, or else a local one.
        on_progress: Called, in another thread, for each finished epoch and each saved state.
        on_notice: Called with each warning about the figures; the card has it as well.

    Raises:
        RecipeError: A name is not in a store, or its images cannot be trained on.
        MissingError: A store is not finalized.
        WeightsError: The model's weights are not available.
        CapacityError: The cluster has no room, or workers keep dying.
    """
    storage = Storage(store, create=True)
    model = registry.resolve_model(recipe.model, storage, classes=recipe.data.classes)
    versions = _choose_versions(recipe, storage)
    identity = {**_identity(recipe), "model": model.identity, "versions": versions}
    records = TrainingRecords(storage, recipe.name, fingerprint(identity))
    storage.put_record(
        _current_key(recipe),
        {"lesson": fingerprint(_identity(recipe)), "run": records.run, "versions": versions},
        if_absent=False,
    )
    if records.is_finished:
        return _outcome(records, trained=False)

    def read(url: str, image_filter: ImageFilter) -> Snapshot:
        return snapshot.take_snapshot(open_ledger(url), image_filter, version=versions[url])

    config = WorkerConfig(
        recipe=recipe,
        run=records.run,
        store=storage.url,
        model=model,
        trained_on=snapshot.merge([read(url, recipe.data.image_filter) for url in recipe.data.stores]),
        held_out={held_out.name: read(held_out.store, held_out.image_filter) for held_out in recipe.held_out},
    )
    _require_batches(config)
    notices = _overlap_notices(config)
    for notice in notices:
        on_notice(notice)
    with report_progress(records, on_progress):
        _run_workers(config, address)
    _publish(records, identity, notices)
    return _outcome(records, trained=True)


def _require_batches(config: WorkerConfig) -> None:
    """Refuses images of which the workers cannot make batches.

    Raises:
        RecipeError: A worker would get fewer than two images, on which batch norm cannot be trained, or the images
            differ in size.
    """
    recipe, workers = config.recipe, config.recipe.engine.workers
    images = Examples(config.trained_on, recipe.mix, rank=0, ranks=workers, padded=True).images_per_epoch()
    if images < 2:
        raise RecipeError(
            f"data: an epoch has {images} images for each of engine.workers = {workers}, and a batch needs two; train "
            "on more images, or with fewer workers"
        )
    read = [(recipe.data.stores, config.trained_on)]
    read += [((held_out.store,), config.held_out[held_out.name]) for held_out in recipe.held_out]
    for stores, selected in read:
        snapshot.require_one_size(selected, [open_ledger(url) for url in stores])


def _publish(records: TrainingRecords, identity: Mapping[str, Any], notices: list[str]) -> None:
    """Copies the weights to the name's own key and writes the card, which marks the run as finished."""
    storage = records.storage
    storage.put(records.weights, storage.get(f"{records.folder}/weights.safetensors"))
    weights = storage.url_of(records.weights)
    text = card.render(records.name, identity, records.read_figures(), weights=weights, notices=notices)
    storage.put(f"{records.folder}/README.md", text.encode())


def _overlap_notices(config: WorkerConfig) -> list[str]:
    """Warnings about held-out sets whose originals are trained on."""
    notices = []
    for name, held_out in config.held_out.items():
        total = sum(len(part.indices) for part in held_out.originals)
        shared = snapshot.shared_originals(held_out, config.trained_on)
        if shared:
            notices.append(
                f"held_out {name}: {shared} of its {total} originals are trained on, too; choose other datasets"
            )
    return notices


def _run_workers(config: WorkerConfig, address: str | None) -> None:
    """Runs every rank on Ray Train, and waits for them."""
    workers, gpus = _require_room(config, address)
    with tempfile.TemporaryDirectory() as folder:  # Ray's own notes; what counts goes to the store
        trainer = TorchTrainer(
            train_rank,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
            ),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=_MAX_FAILURES)),
        )
        try:
            _run_in_thread(trainer.fit)
        except TrainingFailedError as error:
            reasons = list(getattr(error, "worker_failures", {}).values()) or [error]
            known = next((reason for reason in map(_cause, reasons) if isinstance(reason, GnpError)), None)
            if known is not None:
                raise known from error
            raise CapacityError(f"training {config.recipe.name}: {cluster.summary(_cause(reasons[0]))}") from error


def _require_room(config: WorkerConfig, address: str | None) -> tuple[int, float]:
    """Connects to Ray; returns the number of workers and the GPUs of each.

    Raises:
        CapacityError: The cluster has no room for them; Ray Train would wait for it silently.
    """
    nodes = cluster.connect(address)
    gpus = config.recipe.engine.gpus_per_worker
    if gpus is None:
        gpus = float(any(node.gpus for node in nodes))
    workers, room = config.recipe.engine.workers, cluster.room(nodes, gpus)
    if room < workers:
        resources = f"1 CPU and {gpus:g} GPUs" if gpus else "1 CPU"
        raise CapacityError(
            f"engine.workers = {workers}: the cluster has room for {room}, of {resources} each; ask for fewer"
        )
    return workers, gpus


def _run_in_thread(function: Callable[[], object]) -> None:
    """Runs a function in a thread and waits for it: in the main thread, Ray Train turns Ctrl-C into exit code 0."""
    ended: Future[object] = Future()

    def run() -> None:
        try:
            ended.set_result(function())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    ended.result()


def _cause(error: BaseException) -> BaseException:
    return getattr(error, "cause", None) or error.__cause__ or error


def _choose_versions(recipe: TrainingRecipe, storage: Storage) -> dict[str, str]:
    """Store → version to read: those of an unfinished run of the same recipe, otherwise the latest ones."""
    urls = sorted({*recipe.data.stores, *(held_out.store for held_out in recipe.held_out)})
    try:
        current = storage.get_record(_current_key(recipe))
        is_same = current["lesson"] == fingerprint(_identity(recipe))
        if is_same and not TrainingRecords(storage, recipe.name, current["run"]).is_finished:
            return dict(current["versions"])
    except MissingError:
        pass
    return {url: releases.latest_id(open_ledger(url)) for url in urls}


def _current_key(recipe: TrainingRecipe) -> str:
    """Key of the record of the name's last run."""
    return f"training/{slug(recipe.name)}/current.json"


def _identity(recipe: TrainingRecipe) -> dict[str, Any]:
    """The recipe as JSON values, without settings that do not change the result."""
    values = asdict(recipe)
    for name in ("attack", "model"):
        del values[name]
    values["engine"] = {"workers": recipe.engine.workers}
    # "words", "lesson" and "trainee" are keys that stores have had since before the classes were renamed.
    values |= {"attack": provenance(recipe.attack), "words": recorded_settings(recipe.model)}
    return dict(json.loads(json.dumps(values, default=str)))


def _outcome(records: TrainingRecords, *, trained: bool) -> TrainingOutcome:
    return TrainingOutcome(
        run=records.run,
        weights=records.storage.url_of(records.weights),
        card=records.storage.url_of(f"{records.folder}/README.md"),
        epochs=records.read_figures(),
        trained=trained,
    )
