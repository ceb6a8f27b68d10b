"""One training process of Ray Train: resumes from the last saved state and trains to the end; every rank runs this."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import distributed
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline.dataset.batch import Batch
from pipeline.dataset.examples import Examples, forkserver_context
from pipeline.dataset.mix import Mix
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import RecipeError
from pipeline.models import registry
from pipeline.models.checkpoint import serialize_weights
from pipeline.models.classifier import Classifier
from pipeline.models.registry import ResolvedModel
from pipeline.results.intervals import Rate
from pipeline.storage import Storage
from pipeline.training import card
from pipeline.training.accuracy import Accuracy, measure_originals, measure_transfer, to_counts
from pipeline.training.fit import Trainer
from pipeline.training.recipe import TrainingRecipe
from pipeline.training.records import TrainingRecords


@dataclass(frozen=True)
class WorkerConfig:
    """What every training process receives.

    Attributes:
        recipe: Settings of the training run.
        run: Identity of the run.
        store: URL of the store that keeps it.
        model: The model that is trained, resolved.
        trained_on: The images that it is trained on.
        held_out: The images that accuracy is measured on, by name of the set.
    """

    recipe: TrainingRecipe
    run: str
    store: str
    model: ResolvedModel
    trained_on: Snapshot
    held_out: Mapping[str, Snapshot]


def train_rank(config: WorkerConfig) -> None:
    """Trains as one rank; the results are written to the store."""
    _Rank(config).train()


class _Rank:
    """One rank of a training run: its share of the images, its copy of the network."""

    def __init__(self, config: WorkerConfig) -> None:
        context, device = ray.train.get_context(), ray.train.torch.get_device()
        recipe, schedule = config.recipe, config.recipe.schedule
        self._config = config
        self._recipe = recipe
        self._rank, self._ranks = context.get_world_rank(), context.get_world_size()
        self._storage = Storage(config.store)
        self._records = TrainingRecords(self._storage, recipe.name, config.run)
        torch.manual_seed(schedule.seed)
        network = registry.load_unoptimized(config.model, self._storage, classes=recipe.data.classes)
        network = network.to(device).requires_grad_(True)
        self._examples = Examples(config.trained_on, recipe.mix, rank=self._rank, ranks=self._ranks, padded=True)
        self._steps = self._examples.batches_per_epoch(recipe.engine.loaders)
        self._trainer = Trainer(
            network,
            schedule,
            recipe.attack,
            steps=schedule.epochs * self._steps,
            distributed=self._ranks > 1,
        )

    def train(self) -> None:
        """Trains from the last saved state to the last epoch; the first rank writes figures and weights."""
        state = self._records.load_state() or {"epoch": 0, **self._epoch_start()}
        if "trainee" in state:
            self._trainer.load(state["trainee"])
        figures = self._records.read_figures()[: state["epoch"] + 1]
        if not figures:
            figures = [self._measure(epoch=0, loss=None)]
            if self._rank == 0:
                self._records.write_figures(figures)
        for epoch in range(state["epoch"], self._recipe.schedule.epochs):
            loss = self._train_epoch(epoch, state)
            figures.append(self._measure(epoch=epoch + 1, loss=loss))
            if self._rank == 0:
                self._records.write_figures(figures)
                events = card.tensorboard_events(figures)
                self._storage.put(f"{self._records.folder}/events/events.out.tfevents.gnp", events)
            state = self._epoch_start()
            self._save_state(epoch + 1, 0, [], None)
            ray.train.report({"epoch": epoch + 1})
        if self._rank == 0:
            classifier = self._trainer.averaged_network
            assert isinstance(classifier, Classifier)
            self._storage.put(f"{self._records.folder}/weights.safetensors", serialize_weights(classifier.network))

    def _epoch_start(self) -> dict[str, Any]:
        """The part of a state that says how far an epoch is, at its beginning."""
        return {"step": 0, "loaders": [None] * self._ranks, "losses": []}

    def _train_epoch(self, epoch: int, state: Mapping[str, Any]) -> float:
        """Trains for what a state leaves of an epoch; returns the mean loss of the whole epoch."""
        seed, engine = self._recipe.schedule.seed, self._recipe.engine
        self._examples.set_epoch(epoch)
        loader = _loader(self._examples, engine.loaders, state["loaders"][self._rank])
        step, losses = state["step"], list(state["losses"])
        for batch in with_known_labels(loader, self._recipe.data.classes):
            losses.append(self._trainer.step(batch, seed=(seed, epoch, step, self._rank)))
            step += 1
            if step % engine.checkpoint_steps == 0 and step < self._steps:
                self._save_state(epoch, step, losses, loader.state_dict())
        return float(sum(losses) / len(losses))

    def _save_state(self, epoch: int, step: int, losses: list[float], loader: Any) -> None:
        """Saves the state of all ranks at a step of an epoch; every rank waits until it is stored."""
        self._trainer.synchronise_buffers()
        loaders: list[Any] = [loader]
        if self._ranks > 1:
            loaders = [None] * self._ranks
            distributed.all_gather_object(loaders, loader)
        if self._rank == 0:
            state = {
                "trainee": self._trainer.state(),
                "epoch": epoch,
                "step": step,
                "loaders": loaders,
                "losses": losses,
            }
            self._records.save_state(state, epoch=epoch, step=step, steps=self._steps)
        if self._ranks > 1:
            distributed.barrier()

    def _measure(self, *, epoch: int, loss: float | None) -> dict[str, Any]:
        """Figures after an epoch: accuracy on every held-out set, summed over the ranks' shares of the images."""
        self._trainer.synchronise_buffers()
        model, attack = self._trainer.averaged_network, self._recipe.attack
        originals = {
            snapshot.id: snapshot
            for snapshot in (Snapshot(held_out.originals) for held_out in self._config.held_out.values())
        }
        on_originals = {
            identity: self._sum_over_ranks(measure_originals(model, self._batches(snapshot), attack))
            for identity, snapshot in originals.items()
        }  # once, if several sets share their originals
        accuracies = {
            name: on_originals[Snapshot(held_out.originals).id]
            + self._sum_over_ranks(measure_transfer(model, self._batches(held_out)))
            for name, held_out in self._config.held_out.items()
        }
        return {
            "epoch": epoch,
            "loss": loss,
            "learning_rate": self._trainer.learning_rate,
            "held_out": to_counts(accuracies),
        }

    def _batches(self, snapshot: Snapshot) -> Iterable[Batch]:
        """This rank's share of a snapshot, as stored."""
        mix = Mix(self._recipe.schedule.batch_size, shuffled=False)
        examples = Examples(snapshot, mix, rank=self._rank, ranks=self._ranks)
        return with_known_labels(examples, self._recipe.data.classes)

    def _sum_over_ranks(self, accuracy: Accuracy) -> Accuracy:
        if self._ranks == 1:
            return accuracy
        counts = torch.tensor([[rate.count, rate.n] for rate in vars(accuracy).values()])
        counts = counts.to(ray.train.torch.get_device())
        distributed.all_reduce(counts)
        return Accuracy(*(Rate(*map(int, count_and_n)) for count_and_n in counts.tolist()))


def with_known_labels(batches: Iterable[Batch], classes: int) -> Iterator[Batch]:
    """The batches, each after a check of its labels: on a GPU, one out of range ends the process.

    Raises:
        RecipeError: A label is out of the range of the classes.
    """
    for batch in batches:
        label, index = (int(number) for number in batch["labels"].max(dim=0))
        if label >= classes:
            raise RecipeError(f"data.classes = {classes}: image {batch['keys'][index]} has label {label}")
        yield batch


def _loader(examples: Examples, workers: int, state: Any) -> "StatefulDataLoader[Batch]":
    """A loader of the examples, resumed from a state unless that is None."""
    settings: dict[str, Any] = {"multiprocessing_context": forkserver_context()} if workers else {}
    loader = StatefulDataLoader(examples, batch_size=None, num_workers=workers, **settings)
    if state is not None:
        loader.load_state_dict(state)
    return loader
