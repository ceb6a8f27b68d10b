"""Scorer stage: every target's predictions on committed original and adversarial parts."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from pipeline.data import codec
from pipeline.data.parts import Images
from pipeline.ledger import CommittedParts, Marker, Unit
from pipeline.ledger.progress import StageTotals
from pipeline.models import predict, registry
from pipeline.models.defenses import ReadyDefense
from pipeline.models.registry import ResolvedModel
from pipeline.models.spec import TargetSpec
from pipeline.plan.outline import Item, item_parts
from pipeline.results import schema
from pipeline.results.predictions import StoredPredictions
from pipeline.stages.prefetch import BackgroundCalls, Prefetched
from pipeline.stages.stage import DeferredErrors, Stage
from pipeline.stages.success_counts import SuccessCounts

# Reads a committed part: its marker and its images.
ReadPart: TypeAlias = Callable[[], tuple[Marker, Images]]


@dataclass(frozen=True)
class LoadedTarget:
    """A target on its device.

    Attributes:
        model: The resolved target.
        network: Maps (B, 3, H, W) in [0, 1] to logits (B, classes).
        defenses: Its defenses, in order.
    """

    model: ResolvedModel
    network: nn.Module
    defenses: tuple[ReadyDefense, ...]

    @property
    def spec(self) -> TargetSpec:
        """The recipe's settings of the target."""
        assert isinstance(self.model.spec, TargetSpec)
        return self.model.spec

    def seeded_defenses(self, images: Images) -> predict.SeededDefenses:
        """The defenses, with random draws that depend on the images' keys."""
        return predict.SeededDefenses(self.defenses, self.spec.defense_seed, images.keys)


class Scorer(Stage):
    """Turns committed parts into predictions, with every target on its device."""

    def set_up(self) -> None:
        """Loads every target."""
        self._success_counts = SuccessCounts(self.ledger)
        storage, classes = self.ledger.storage, self.plan.job.data.classes
        self.targets = [
            LoadedTarget(
                model,
                registry.load_resolved(model, storage, classes=classes, device=self.device),
                registry.load_defenses(model, storage, device=self.device),
            )
            for model in self.plan.targets
        ]

    def run(self, item: Item, *, attempt: int = 1) -> StageTotals:
        """Scores the committed parts of an item that are not scored yet.

        An error of one part or target is raised at the end, after the others are scored.

        Raises:
            StorageError: The store failed, or stored bytes are damaged.
            FloatingPointError: A target's logits are not finite.
            Interrupted: The stage was asked to stop, and did so between two units.
        """
        self.start_item(item)
        errors = DeferredErrors()
        committed = self.list_committed(item)
        with contextlib.closing(Prefetched(self._unscored(item, committed))) as parts, BackgroundCalls() as commits:
            for targets, read in parts:
                with errors.deferring():
                    marker, images = read()
                    for target in targets:
                        self.require_not_stopped()
                        with errors.deferring():
                            commit = self._score(marker, target, images, attempt)
                            commits.submit(partial(self.commit_unit, commit, len(images.keys), errors))
        errors.raise_first()
        return self.take_totals()

    def _unscored(self, item: Item, committed: CommittedParts) -> Iterator[tuple[list[LoadedTarget], ReadPart]]:
        """The targets that each committed part lacks predictions of, and the call that reads the part."""
        for part in item_parts(item, committed) or []:
            original = Unit(self.plan.dataset, part)
            adversarial = (replace(original, source=item.source, attack=attack) for attack in self.plan.attacks)
            for unit in (original, *adversarial):
                targets = [target for target in self.targets if replace(unit, target=target.model.id) not in committed]
                if unit in committed and targets:
                    yield targets, partial(self.read_part, unit, item)

    def _score(self, marker: Marker, target: LoadedTarget, images: Images, attempt: int) -> Callable[[], None]:
        """Computes a target's predictions; returns the call that commits them, which does not use the device."""
        started = time.monotonic()
        unit = replace(marker.unit, target=target.model.id)
        predictions = self._predict(target, images)
        columns = self._columns(unit, target, images, predictions)
        facts = {
            "n": len(images.keys),
            "scored_sha256": marker.sha256,
            "target": target.model.identity,
            **self.execution_facts(batch_size=predictions.batch_size, started=started, attempt=attempt),
        }
        return partial(self._commit, unit, columns, facts)

    def _predict(self, target: LoadedTarget, images: Images) -> predict.BatchPredictions:
        def predict_all(batch: Images) -> None:
            defenses, every = target.seeded_defenses(batch), slice(0, len(batch.keys))
            with torch.inference_mode():
                predict.predict_probabilities(
                    target.network,
                    batch.pixels,
                    every,
                    device=self.device,
                    defenses=defenses,
                    name=target.spec.name,
                )

        with self.timed("answer"):
            return predict.predict(
                target.network,
                images.pixels,
                images.labels,
                batch_size=self.choose_batch_size(target.model.id, images, predict_all),
                device=self.device,
                defenses=target.seeded_defenses(images),
                name=target.spec.name,
            )

    def _columns(
        self, unit: Unit, target: LoadedTarget, images: Images, predictions: predict.BatchPredictions
    ) -> dict[str, Any]:
        """The columns of a result file, one row per image."""
        columns: dict[str, Any] = {
            "dataset": unit.dataset,
            "shard": unit.part.shard,
            "part": unit.part.index,
            "key": images.keys,
            "label": images.labels.numpy(),
            "target": target.spec.name,
            "target_id": unit.target,
            "policy": target.spec.policy,
            "defense": target.spec.defense,
            "weights_sha256": target.model.digest,
            "pixels_sha256": [codec.pixels_sha256(pixels) for pixels in images.pixels],
            "prediction": predictions.prediction.numpy(),
            "label_probability": predictions.label_probability.numpy(),
            "abstained": predictions.abstained.numpy(),
        }
        if not unit.attack:
            return columns
        attack = self.plan.attacks[unit.attack]
        return columns | {
            "source": next(source.spec.name for source in self.plan.sources if source.id == unit.source),
            "source_id": unit.source,
            "attack": attack.name,
            "attack_id": unit.attack,
            "epsilon": float(attack.epsilon),
            "norm": attack.norm,
            "target_class": [
                None if target_class < 0 else target_class for target_class in images.target_classes.tolist()
            ],
        }

    def _commit(self, unit: Unit, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        with self.timed("encode"):
            table = schema.build_table(schema.TRANSFER if unit.attack else schema.CLEAN, columns)
            file = schema.to_parquet(table)
        with self.timed("put"):
            self.ledger.commit(unit, file, "parquet", facts)
        self.add_totals(self._success_counts.add(StoredPredictions(unit, unit.data_key, table)))
