"""Committed parts → predictions."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pipeline.data import codec
from pipeline.data.parts import Images
from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Committed, Marker, Unit
from pipeline.ledger.progress import Made
from pipeline.models import predict, registry
from pipeline.models.defenses import Ready
from pipeline.models.load import TargetSpec
from pipeline.models.registry import Model
from pipeline.plan.outline import Item, item_parts, scopes
from pipeline.results import schema as results
from pipeline.results.predictions import Predictions
from pipeline.stages.prefetch import Ahead, Behind
from pipeline.stages.stage import Failures, Stage

log = logging.getLogger(__name__)

# A target, its network, and the defenses that it is behind.
Target = tuple[Model, nn.Module, tuple[Ready, ...]]
# On which targets something is to be scored, and how to come by it.
Unscored = Iterator[tuple[list[Target], Callable[[], tuple[Marker, Images]]]]


class Scorer(Stage):
    """Turns committed parts into predictions; owns every target."""

    def open(self) -> None:
        """Loads every target."""
        self._clean: dict[str, Predictions] = {}  # of the part at hand, by target: what is said of it unattacked
        storage, classes = self.ledger.storage, self.plan.job.data.classes
        self.targets: list[Target] = [
            (
                model,
                registry.load(model, storage, classes=classes, device=self.device),
                registry.load_defenses(model, storage, device=self.device),
            )
            for model in self.plan.targets
        ]

    def run(self, item: Item, *, attempt: int = 1) -> Made:
        """Scores what is committed of an item and not scored yet.

        A part that fails does not keep the others from being scored; its error is raised at the end.

        Raises:
            StorageError: The store failed, or stored bytes are damaged.
            Interrupted: It was told to stop, and did so between two units.
        """
        self.begin(item)
        failures = Failures()
        committed = self.ledger.committed(scopes(self.plan.outline, item.source), shard=item.take.shard.name)
        with contextlib.closing(Ahead(self._unscored(item, committed))) as unscored, Behind() as behind:
            for targets, read in unscored:
                with failures.noted():
                    marker, images = read()
                    for target in targets:
                        self.require_going_on()
                        commit = self._scored(marker, *target, images, attempt)
                        behind.call(partial(self.put_away, commit, len(images.keys), failures))
        failures.tell()
        return self.collected()

    def _unscored(self, item: Item, committed: Committed) -> Unscored:
        """What is committed and not scored on every target: on which it is not, and how to come by its images."""
        for part in item_parts(item, committed) or []:
            original = Unit(self.plan.dataset, part)
            adversarial = (replace(original, source=item.source, attack=attack) for attack in self.plan.attacks)
            for unit in (original, *adversarial):
                targets = [each for each in self.targets if replace(unit, target=each[0].id) not in committed]
                if unit in committed and targets:
                    yield targets, partial(self.fetched, unit, item)

    def _scored(
        self,
        marker: Marker,
        model: Model,
        network: nn.Module,
        defenses: Sequence[Ready],
        images: Images,
        attempt: int,
    ) -> Callable[[], None]:
        """Asks a target about images; returns what commits its answers, which the device has no part in."""
        started = time.monotonic()
        unit = replace(marker.unit, target=model.id)
        target = model.spec
        assert isinstance(target, TargetSpec)

        def ask_all(some: Images) -> None:
            behind = predict.Behind(defenses, target.defense_seed, some.keys)
            with torch.inference_mode():
                predict.ask(network, some.pixels, slice(0, len(some.keys)), device=self.device, behind=behind)

        with self.timed("answer"):
            said = predict.predict(
                network,
                images.pixels,
                images.labels,
                batch_size=self.batch_size(unit.target, images, ask_all),
                device=self.device,
                behind=predict.Behind(defenses, target.defense_seed, images.keys),
            )
        columns: dict[str, Any] = {
            "dataset": unit.dataset,
            "shard": unit.part.shard,
            "part": unit.part.index,
            "key": images.keys,
            "label": images.labels.numpy(),
            "target": model.spec.name,
            "target_id": unit.target,
            "policy": target.policy,
            "defense": target.defense,
            "weights_sha256": model.digest,
            "pixels_sha256": [codec.pixels_sha256(pixels) for pixels in images.pixels],
            "prediction": said.prediction.numpy(),
            "label_probability": said.label_probability.numpy(),
            "abstained": said.abstained.numpy(),
        }
        schema = results.CLEAN
        if unit.attack:
            schema = results.TRANSFER
            attack = self.plan.attacks[unit.attack]
            columns |= {
                "source": next(source.spec.name for source in self.plan.sources if source.id == unit.source),
                "source_id": unit.source,
                "attack": attack.name,
                "attack_id": unit.attack,
                "epsilon": float(attack.epsilon),
                "norm": attack.norm,
                "target_class": [None if wanted < 0 else wanted for wanted in images.target_classes.tolist()],
            }
        facts = {
            "n": len(images.keys),
            "scored_sha256": marker.sha256,
            "target": model.identity,
            **self.circumstances(batch_size=said.batch_size, started=started, attempt=attempt),
        }

        def commit() -> None:
            with self.timed("encode"):
                table = results.table(schema, columns)
                file = results.write(table)
            with self.timed("put"):
                self.ledger.commit(unit, file, "parquet", facts)
            self._count_fooled(Predictions(unit, unit.data, table))

        return commit

    def _count_fooled(self, said: Predictions) -> None:
        """Counts an attack's success on what the target gets right when clean; what is said unattacked is kept for it.

        Called in the thread that commits, unit after unit: a part's clean images come before what is made of them.
        """
        unit = said.unit
        if not unit.attack:
            self._clean[unit.target] = said
        elif said.table.num_rows:
            try:
                clean = self._clean_of(unit)
                said.require_images_of(clean)
            except (IntegrityError, MissingError) as error:  # the results stand all the same
                log.warning("%s is not counted: %s", unit.data, error)
                return
            cell = said.constant("source"), said.constant("attack"), said.constant("target")
            counted = said.attacked & clean.correct
            self.count(Made(counted={cell: int(counted.sum())}, fooled={cell: int((said.fooled & counted).sum())}))

    def _clean_of(self, unit: Unit) -> Predictions:
        known = self._clean.get(unit.target)
        if known is None or known.unit.part != unit.part:
            marker = self.ledger.marker(replace(unit, source="", attack=""))  # an earlier run's
            known = Predictions(marker.unit, marker.object, results.read(self.ledger.read(marker), name=marker.object))
            self._clean[unit.target] = known
        return known
