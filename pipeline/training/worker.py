"""One process of training, from the last state that was kept to the end; every one of them runs this."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import distributed
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline.dataset.examples import Batch, Examples, Mix, forkserver
from pipeline.dataset.snapshot import Snapshot
from pipeline.models import load, registry
from pipeline.models.classifier import Classifier
from pipeline.models.registry import Model
from pipeline.results.intervals import Rate
from pipeline.storage import Storage
from pipeline.training import card
from pipeline.training.accuracy import Accuracy, as_numbers, of_originals, of_transfer
from pipeline.training.fit import Trainee
from pipeline.training.lesson import Lesson
from pipeline.training.records import Records


@dataclass(frozen=True)
class Told:
    """What every process is told.

    Attributes:
        lesson: The training run.
        run: Its identity.
        store: URL of the store that keeps it.
        model: What is trained, resolved.
        trained_on: The images.
        held_out: What accuracy is measured on, by name.
    """

    lesson: Lesson
    run: str
    store: str
    model: Model
    trained_on: Snapshot
    held_out: Mapping[str, Snapshot]


def train_rank(told: Told) -> None:
    """Trains; what comes of it lies in the store."""
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    lesson, schedule, storage = told.lesson, told.lesson.schedule, Storage(told.store)
    records = Records(storage, lesson.name, told.run)
    torch.manual_seed(schedule.seed)
    network = registry.load_plain(told.model, storage, classes=lesson.data.classes).to(device).requires_grad_(True)
    mix = Mix(schedule.batch_size, clean=lesson.data.clean, weights=lesson.data.weights, seed=schedule.seed)
    examples = Examples(told.trained_on, mix, rank=rank, ranks=ranks, padded=True)
    steps = examples.batches_per_epoch(lesson.engine.loaders)
    trainee = Trainee(network, schedule, lesson.attack, steps=schedule.epochs * steps, distributed=ranks > 1)
    state = records.kept() or {"epoch": 0, "step": 0, "loaders": [None] * ranks, "losses": []}
    if "trainee" in state:
        trainee.load(state["trainee"])
    figures = records.epochs()[: state["epoch"] + 1]
    if not figures:
        figures = [_figures(trainee, told, rank, ranks, epoch=0, loss=None)]
        if rank == 0:
            records.note(figures)
    for epoch in range(state["epoch"], schedule.epochs):
        examples.set_epoch(epoch)
        loader = _loader(examples, lesson.engine.loaders, state["loaders"][rank])
        step, losses = state["step"], list(state["losses"])
        for batch in loader:
            losses.append(trainee.step(batch, seed=(schedule.seed, epoch, step, rank)))
            step += 1
            if step % lesson.engine.checkpoint_steps == 0 and step < steps:
                _keep(records, trainee, ranks, (epoch, step, steps), losses, loader.state_dict())
        figures.append(_figures(trainee, told, rank, ranks, epoch=epoch + 1, loss=sum(losses) / len(losses)))
        if rank == 0:
            records.note(figures)
            storage.put(f"{records.folder}/events/events.out.tfevents.gnp", card.events(figures))
        state = {"step": 0, "loaders": [None] * ranks, "losses": []}
        _keep(records, trainee, ranks, (epoch + 1, 0, steps), [], None)
        ray.train.report({"epoch": epoch + 1})
    if rank == 0:
        averaged = trainee.averaged
        assert isinstance(averaged, Classifier)
        storage.put(f"{records.folder}/weights.safetensors", load.dump(averaged.network))


def _loader(examples: Examples, workers: int, state: Any) -> "StatefulDataLoader[Batch]":
    settings: dict[str, Any] = {"multiprocessing_context": forkserver()} if workers else {}
    loader = StatefulDataLoader(examples, batch_size=None, num_workers=workers, **settings)
    if state is not None:
        loader.load_state_dict(state)
    return loader


def _keep(
    records: Records, trainee: Trainee, ranks: int, at: tuple[int, int, int], losses: list[float], loader: Any
) -> None:
    """Keeps where all processes are: in which epoch, at which step of how many; each waits until the state stands."""
    epoch, step, steps = at
    trainee.agree()
    loaders: list[Any] = [loader]
    if ranks > 1:
        loaders = [None] * ranks
        distributed.all_gather_object(loaders, loader)
    if ray.train.get_context().get_world_rank() == 0:
        records.keep(
            {"trainee": trainee.state(), "epoch": epoch, "step": step, "loaders": loaders, "losses": losses},
            epoch=epoch,
            step=step,
            steps=steps,
        )
    if ranks > 1:
        distributed.barrier()


def _figures(trainee: Trainee, told: Told, rank: int, ranks: int, *, epoch: int, loss: float | None) -> dict[str, Any]:
    """Accuracy on every held-out set, each image by one process, added up over all."""
    trainee.agree()
    model, lesson = trainee.averaged, told.lesson

    def batches(of: Snapshot) -> Iterable[Batch]:
        return Examples(of, Mix(lesson.schedule.batch_size, shuffled=False), rank=rank, ranks=ranks)

    originals = {of.id: of for of in (Snapshot(each.originals) for each in told.held_out.values())}
    on_originals = {
        id_: _summed(of_originals(model, batches(of), lesson.attack), ranks) for id_, of in originals.items()
    }  # once, where several sets share theirs
    found = {
        name: on_originals[Snapshot(of.originals).id] + _summed(of_transfer(model, batches(of)), ranks)
        for name, of in told.held_out.items()
    }
    return {"epoch": epoch, "loss": loss, "learning_rate": trainee.learning_rate, "held_out": as_numbers(found)}


def _summed(found: Accuracy, ranks: int) -> Accuracy:
    if ranks == 1:
        return found
    counts = torch.tensor([[rate.count, rate.n] for rate in vars(found).values()])
    device = ray.train.torch.get_device()
    counts = counts.to(device)
    distributed.all_reduce(counts)
    return Accuracy(*(Rate(*map(int, each)) for each in counts.tolist()))
