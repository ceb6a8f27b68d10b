"""A lesson → Ray Train → the trained weights, their figures and a card, in the store."""

import json
import logging
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.attack.recipe import provenance
from pipeline.dataset import snapshot
from pipeline.dataset.snapshot import Choice, Snapshot
from pipeline.engine import cluster
from pipeline.errors import CapacityError, GnpError, MissingError
from pipeline.ledger import fingerprint, opened, slug
from pipeline.maintenance import releases
from pipeline.models import registry
from pipeline.storage import Storage
from pipeline.training import card
from pipeline.training.lesson import Lesson
from pipeline.training.progress import Progress, followed
from pipeline.training.records import Records
from pipeline.training.worker import Told, train_rank

log = logging.getLogger(__name__)

# So often a worker that died is replaced, and training goes on from the last state that was kept.
_FAILURES = 5


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        run: The run's identity.
        weights: Where the trained weights lie: a checkpoint for the next recipe.
        card: Where the card lies.
        epochs: Figures before training and after each epoch.
        trained: Whether anything was done; False where this very run had ended before.
    """

    run: str
    weights: str
    card: str
    epochs: list[dict[str, Any]]
    trained: bool


def train(
    lesson: Lesson,
    store: str,
    *,
    address: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_notice: Callable[[str], None] = log.warning,
) -> Outcome:
    """Trains, from where an earlier process of the same lesson was cut off.

    A run reads one finalized version of each store from its beginning to its end. Where that lesson has ended, it is
    trained again only once there is another version.

    Args:
        lesson: What is trained, on what, how.
        store: Where what comes of it is kept.
        address: A Ray cluster; by default the one of this process, or of RAY_ADDRESS, or else a local one.
        on_progress: Told, in another thread, of each epoch that is over and each state that is kept.
        on_notice: Called with a line that whoever trains should know; the card has it as well.

    Raises:
        RecipeError: A name is none of a store's.
        MissingError: A store is not finalized.
        WeightsError: The model's weights cannot be had.
        CapacityError: The cluster has no room, or workers keep dying.
    """
    storage = Storage(store, create=True)
    model = registry.resolve(lesson.model, storage, classes=lesson.data.classes)
    pinned = _versions(lesson, storage)
    identity = {**_identity(lesson), "model": model.identity, "versions": pinned}
    records = Records(storage, lesson.name, fingerprint(identity))
    storage.put_record(
        f"training/{slug(lesson.name)}/current.json",
        {"lesson": fingerprint(_identity(lesson)), "run": records.run, "versions": pinned},
        once=False,
    )
    if records.ended:
        return _outcome(records, trained=False)
    told = Told(
        lesson=lesson,
        run=records.run,
        store=storage.url,
        model=model,
        trained_on=snapshot.together([_taken(url, lesson.data.choice, pinned) for url in lesson.data.stores]),
        held_out={each.name: _taken(each.store, each.choice, pinned) for each in lesson.held_out},
    )
    notices = _not_held_out(told)
    for line in notices:
        on_notice(line)
    with followed(records, on_progress):
        _fit(told, address)
    trained = storage.get(f"{records.folder}/weights.safetensors")
    storage.put(records.weights, trained)
    epochs = records.epochs()
    said = card.text(lesson.name, identity, epochs, weights=storage.at(records.weights), notices=notices)
    storage.put(f"{records.folder}/README.md", said.encode())
    return _outcome(records, trained=True)


def _not_held_out(told: Told) -> list[str]:
    """What is held out in name only."""
    found = []
    for name, held_out in told.held_out.items():
        images = sum(len(piece.chosen) for piece in held_out.originals)
        seen = snapshot.shared(held_out, told.trained_on)
        if seen:
            found.append(
                f"held_out {name}: {seen} of its {images} originals are trained on, too; choose other datasets"
            )
    return found


def _fit(told: Told, address: str | None) -> None:
    nodes = cluster.connect(address)
    gpus = told.lesson.engine.gpus_per_worker
    if gpus is None:
        gpus = float(any(node.gpus for node in nodes))
    workers, room = told.lesson.engine.workers, cluster.room(nodes, gpus)
    if room < workers:  # Ray Train would wait for it in silence
        each = f"1 CPU and {gpus:g} GPUs" if gpus else "1 CPU"
        raise CapacityError(
            f"engine.workers = {workers}: the cluster has room for {room}, of {each} each; ask for fewer"
        )
    with tempfile.TemporaryDirectory() as folder:  # Ray keeps notes of its own; what counts goes to the store
        trainer = TorchTrainer(
            train_rank,
            train_loop_config=told,
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
            ),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=_FAILURES)),
        )
        try:
            _in_a_thread(trainer.fit)
        except TrainingFailedError as error:
            reasons = list(getattr(error, "worker_failures", {}).values()) or [error]
            known = next((reason for reason in map(_cause, reasons) if isinstance(reason, GnpError)), None)
            if known is not None:
                raise known from error
            raise CapacityError(f"training {told.lesson.name}: {cluster.gist(_cause(reasons[0]))}") from error


def _in_a_thread(work: Callable[[], object]) -> None:
    """Waits for what runs elsewhere: Ray Train, where it is the main thread's, turns Ctrl-C into exit code 0."""
    done: Future[object] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    done.result()


def _cause(error: BaseException) -> BaseException:
    return getattr(error, "cause", None) or error.__cause__ or error


def _versions(lesson: Lesson, storage: Storage) -> dict[str, str]:
    """Store → the version that is read: what the last run of this lesson began with, as long as it has not ended."""
    key, words = f"training/{slug(lesson.name)}/current.json", fingerprint(_identity(lesson))
    urls = sorted({*lesson.data.stores, *(each.store for each in lesson.held_out)})
    try:
        current = storage.record(key)
        if current["lesson"] == words and not Records(storage, lesson.name, current["run"]).ended:
            return dict(current["versions"])
    except MissingError:
        pass
    return {url: releases.latest(opened(url)) for url in urls}


def _identity(lesson: Lesson) -> dict[str, Any]:
    """What a run is told, as JSON values, without what does not change the result."""
    told = asdict(lesson)
    for name in ("attack", "model"):
        del told[name]
    told["engine"] = {"workers": lesson.engine.workers}
    return dict(
        json.loads(
            json.dumps({**told, "attack": provenance(lesson.attack), "words": asdict(lesson.model)}, default=str)
        )
    )


def _taken(url: str, choice: Choice, pinned: dict[str, str]) -> Snapshot:
    return snapshot.take(opened(url), choice, version=pinned[url])


def _outcome(records: Records, *, trained: bool) -> Outcome:
    return Outcome(
        run=records.run,
        weights=records.storage.at(records.weights),
        card=records.storage.at(f"{records.folder}/README.md"),
        epochs=records.epochs(),
        trained=trained,
    )
