"""Committed parts → predictions."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pipeline import codec, parts, results, score, weights
from pipeline.defenses import Ready
from pipeline.ledger import Marker, Unit
from pipeline.models import TargetSpec
from pipeline.outline import Item, item_parts, scopes
from pipeline.parts import Images
from pipeline.progress import Made
from pipeline.stages.stage import Failures, Stage
from pipeline.weights import Model

log = logging.getLogger(__name__)


class Scorer(Stage):
    """Turns committed parts into predictions; owns every target."""

    def open(self) -> None:
        """Loads every target."""
        storage, classes = self.ledger.storage, self.plan.job.data.classes
        self.targets = [
            (
                model,
                weights.load(model, storage, classes=classes).to(self.device),
                weights.load_defenses(model, storage, device=self.device),
            )
            for model in self.plan.targets
        ]

    def run(self, item: Item, *, attempt: int = 1) -> Made:
        """Scores what is committed of an item and not scored yet; `made` says how far it has come.

        A part that fails does not keep the others from being scored; its error is raised at the end.

        Raises:
            StorageError: The store failed, or stored bytes are damaged.
            Interrupted: It was told to stop, and did so between two units.
        """
        self.made, started = Made(), time.monotonic()
        failures = Failures()
        committed = self.ledger.committed(scopes(self.plan.outline, item.source), shard=item.take.shard.name)
        for part in item_parts(item, committed) or []:
            original = Unit(self.plan.dataset, part)
            for unit in (
                original,
                *(replace(original, source=item.source, attack=attack) for attack in self.plan.attacks),
            ):
                targets = [each for each in self.targets if replace(unit, target=each[0].id) not in committed]
                if unit not in committed or not targets:
                    continue
                with failures.noted():
                    marker = self.ledger.marker(unit)
                    images = parts.read(self.ledger.read(marker), name=marker.object)
                    for model, network, defenses in targets:
                        self.require_going_on()
                        self._score(marker, model, network, defenses, images, attempt)
                        self.made += Made(1, len(images.keys))
        failures.tell()
        log.info("%s: %d result files in %.1f s", item.name, self.made.parts, time.monotonic() - started)
        return self.made

    def _score(
        self,
        marker: Marker,
        model: Model,
        network: nn.Module,
        defenses: Sequence[Ready],
        images: Images,
        attempt: int,
    ) -> None:
        started = time.monotonic()
        unit = replace(marker.unit, target=model.id)
        target = model.spec
        assert isinstance(target, TargetSpec)
        said = score.predict(
            network,
            images.pixels,
            images.labels,
            batch_size=self.plan.job.batch_size,
            device=self.device,
            behind=score.Behind(defenses, target.defense_seed, images.keys),
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
        self.ledger.commit(unit, results.write(schema, columns), "parquet", facts)
