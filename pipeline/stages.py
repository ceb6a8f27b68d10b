"""What one actor does with one item: the two stages, without Ray.

Both stages ask the ledger what is missing and make only that, part by part, so that a retry or a second run goes on
where the last one stood, and a preempted worker loses one part at most.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import __version__, codec, models, parts, results, score, shards
from pipeline.attack.recipe import Attack, provenance
from pipeline.errors import SampleError, ShardError, WeightsError
from pipeline.ledger import Ledger, Marker, Unit
from pipeline.parts import Images
from pipeline.plan import Item, Model, Plan, item_parts, units
from pipeline.sample import Part, Rejected, Sample
from pipeline.storage import sha256

log = logging.getLogger(__name__)


class Generator:
    """Turns items into original and adversarial parts; owns a device and one source model at a time."""

    def __init__(self, plan: Plan, ledger: Ledger, device: torch.device) -> None:
        self.plan = plan
        self.ledger = ledger
        self.device = device
        self._loaded: tuple[str, models.Classifier] | None = None

    def run(self, item: Item) -> int:
        """Makes what is missing of an item's originals and attacks; returns how many adversarial parts it made.

        Raises:
            ShardError: The shard is truncated, damaged or empty.
            StorageError: The store failed.
            WeightsError: The source's weights are not those that the driver resolved.
        """
        committed = _committed(self.ledger, self.plan, item)
        made, started = 0, time.monotonic()
        for part, images in self._originals(item, committed):
            clean: Tensor | None = None
            for attack_id, attack in self.plan.attacks.items():
                unit = Unit(self.plan.dataset, part, item.source, attack_id)
                if unit in committed:
                    continue
                source = self._source(item.source)
                if clean is None:
                    clean = self._predict(source, images.pixels, images.labels)
                self._attack(unit, attack, source, images, clean)
                made += 1
        log.info("%s: %d adversarial parts in %.1f s", item.name, made, time.monotonic() - started)
        return made

    def _originals(self, item: Item, committed: set[Unit]) -> Iterator[tuple[Part, Images]]:
        """The item's parts that need work, with their images: from the store where committed, else from the shard."""
        known = item_parts(item, committed)
        if known is not None:
            missing = [part for part in known if not self._has_attacks(part, item.source, committed)]
            if all(Unit(self.plan.dataset, part) in committed for part in missing):
                for part in missing:
                    yield part, self._stored(Unit(self.plan.dataset, part))
                return
        data = shards.fetch(item.take.shard.url)
        shard = item.take.shard
        facts = {"url": shard.url, "size_bytes": len(data), "version": shard.version, "sha256": sha256(data)}
        before = next((unit for unit in sorted(committed) if unit.kind == "original"), None)
        if before is not None and self.ledger.marker(before).fact("shard")["sha256"] != facts["sha256"]:
            raise ShardError(f"{shard.url}: changed since its first parts were made; restore it or rename it")
        for part, samples in self._parts(item, data):
            unit = Unit(self.plan.dataset, part)
            if unit in committed:
                if not self._has_attacks(part, item.source, committed):
                    yield part, self._stored(unit)
            else:
                yield part, self._make_original(unit, samples, facts)

    def _stored(self, original: Unit) -> Images:
        marker = self.ledger.marker(original)
        return parts.read(self.ledger.read(marker), name=marker.object)

    def _has_attacks(self, part: Part, source: str, committed: set[Unit]) -> bool:
        wanted = (Unit(self.plan.dataset, part, source, attack) for attack in self.plan.attacks)
        return Unit(self.plan.dataset, part) in committed and all(unit in committed for unit in wanted)

    def _parts(self, item: Item, data: bytes) -> Iterator[tuple[Part, list[Sample | Rejected]]]:
        spec, name = self.plan.job.data, item.take.shard.name
        samples = list(shards.read(data, name=name, classes=spec.classes))[: item.take.images]
        if not samples:
            raise ShardError(f"shard {name}: it holds no samples; leave it out of the recipe")
        count = -(-len(samples) // spec.part_size)
        for index in range(item.offset, count, item.stride):
            yield Part(name, index, count), samples[index * spec.part_size : (index + 1) * spec.part_size]

    def _make_original(self, unit: Unit, samples: list[Sample | Rejected], shard: dict[str, Any]) -> Images:
        """Decodes, prepares and commits a part; what stands in the store afterwards is what is attacked."""
        spec, started = self.plan.job.data, time.monotonic()
        kept: list[tuple[Sample, Tensor]] = []
        quarantined: list[Rejected] = []
        chosen = [sample for sample in samples if spec.chooses(unit.part.shard, sample.key)]
        for sample in chosen:
            if isinstance(sample, Rejected):
                quarantined.append(sample)
                continue
            try:
                kept.append((sample, codec.decode(sample.image, spec.preparation)))
            except SampleError as error:
                quarantined.append(Rejected(sample.key, str(error)))
        images = parts.stack([s.key for s, _ in kept], [s.label for s, _ in kept], [pixels for _, pixels in kept])
        tar = shards.write(
            {"__key__": sample.key, "png": codec.encode(pixels), "cls": str(sample.label).encode()}
            for sample, pixels in kept
        )
        facts = {
            "n_in": len(chosen),
            "n_ok": len(kept),
            "n_not_chosen": len(samples) - len(chosen),
            "n_quarantined": len(quarantined),
            "quarantined": [{"key": rejected.key, "reason": rejected.reason} for rejected in quarantined],
            "pixels_sha256": codec.pixels_sha256(images.pixels),
            "shard": shard,
            **_circumstances(self.device, self.plan, started),
        }
        marker = self.ledger.commit(unit, tar, "tar", facts)
        if marker.fact("pixels_sha256") == facts["pixels_sha256"]:
            return images
        return self._stored(unit)

    def _attack(self, unit: Unit, attack: Attack, source: models.Classifier, images: Images, clean: Tensor) -> None:
        started = time.monotonic()
        pixels = self._adversarial(attack, source, images)
        fooled = self._predict(source, pixels, images.labels)
        described = provenance(attack)
        name = next(model.spec.name for model in self.plan.sources if model.id == unit.source)
        rows = zip(
            images.keys, images.labels.tolist(), images.pixels, pixels, clean.tolist(), fooled.tolist(), strict=True
        )
        tar = shards.write(
            {
                "__key__": key,
                "png": codec.encode(adversarial),
                "cls": str(label).encode(),
                "json": json.dumps(
                    {
                        "key": key,
                        "label": label,
                        "source": name,
                        "attack": described,
                        "epsilon": float(attack.epsilon),
                        "seed": attack.seed,
                        "source_prediction_clean": before,
                        "source_prediction_adversarial": after,
                        **_distances(original, adversarial),
                    },
                    sort_keys=True,
                ).encode(),
            }
            for key, label, original, adversarial, before, after in rows
        )
        facts = {
            "n": len(images.keys),
            "attack": described,
            "source": next(model.identity for model in self.plan.sources if model.id == unit.source),
            "pixels_sha256": codec.pixels_sha256(pixels),
            "original_pixels_sha256": codec.pixels_sha256(images.pixels),
            **_circumstances(self.device, self.plan, started),
        }
        self.ledger.commit(unit, tar, "tar", facts)

    def _adversarial(self, attack: Attack, source: models.Classifier, images: Images) -> Tensor:
        """The attack on every image, as stored: (N, 3, H, W) uint8."""
        size = self.plan.job.batch_size
        made = [images.pixels[:0]]
        for start in range(0, len(images.keys), size):
            batch = slice(start, start + size)
            pixels, labels = images.pixels[batch].to(self.device), images.labels[batch].to(self.device)
            adversarial = attack(source, codec.to_float(pixels), labels, images.keys[batch])
            made.append(codec.quantise(adversarial, pixels, attack.epsilon).cpu())
        return torch.cat(made)

    def _predict(self, source: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
        size = self.plan.job.batch_size
        return score.predict(source, pixels, labels, batch_size=size, device=self.device).prediction

    def _source(self, identity: str) -> models.Classifier:
        if self._loaded is None or self._loaded[0] != identity:
            model = next(model for model in self.plan.sources if model.id == identity)
            self._loaded = None  # the old one is let go before the new one is loaded
            self._loaded = (identity, _load(model, self.plan, self.device))
        return self._loaded[1]


class Scorer:
    """Turns committed parts into predictions; owns every target."""

    def __init__(self, plan: Plan, ledger: Ledger, device: torch.device) -> None:
        self.plan = plan
        self.ledger = ledger
        self.device = device
        self.targets = [(model, _load(model, plan, device)) for model in plan.targets]

    def run(self, item: Item) -> int:
        """Scores what is committed of an item and not yet scored; returns how many result files it made.

        Raises:
            StorageError: The store failed, or stored bytes are damaged.
        """
        committed = _committed(self.ledger, self.plan, item)
        made, started = 0, time.monotonic()
        for part in item_parts(item, committed) or []:
            original = Unit(self.plan.dataset, part)
            for unit in (
                original,
                *(replace(original, source=item.source, attack=attack) for attack in self.plan.attacks),
            ):
                targets = [(m, net) for m, net in self.targets if replace(unit, target=m.id) not in committed]
                if unit not in committed or not targets:
                    continue
                marker = self.ledger.marker(unit)
                images = parts.read(self.ledger.read(marker), name=marker.object)
                for model, network in targets:
                    self._score(marker, model, network, images)
                    made += 1
        log.info("%s: %d result files in %.1f s", item.name, made, time.monotonic() - started)
        return made

    def _score(self, marker: Marker, model: Model, network: nn.Module, images: Images) -> None:
        started = time.monotonic()
        unit = replace(marker.unit, target=model.id)
        said = score.predict(
            network, images.pixels, images.labels, batch_size=self.plan.job.batch_size, device=self.device
        )
        columns: dict[str, Any] = {
            "dataset": unit.dataset,
            "shard": unit.part.shard,
            "part": unit.part.index,
            "key": images.keys,
            "label": images.labels.numpy(),
            "target": model.spec.name,
            "target_id": unit.target,
            "policy": model.spec.policy,
            "weights_sha256": model.digest,
            "pixels_sha256": [codec.pixels_sha256(pixels) for pixels in images.pixels],
            "prediction": said.prediction.numpy(),
            "label_probability": said.label_probability.numpy(),
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
                "target_class": None,
            }
        facts = {
            "n": len(images.keys),
            "scored_sha256": marker.sha256,
            "target": model.identity,
            **_circumstances(self.device, self.plan, started),
        }
        self.ledger.commit(unit, results.write(schema, columns), "parquet", facts)


def _committed(ledger: Ledger, plan: Plan, item: Item) -> set[Unit]:
    """The units of an item's shard that stand in the ledger, for this plan's attacks and targets."""
    scopes = {unit.scope for unit in units(plan, item.source, Part(item.take.shard.name, 0, 1))}
    return {unit for scope in scopes for unit in ledger.units(f"{scope}/{item.take.shard.name}")}


def _load(model: Model, plan: Plan, device: torch.device) -> models.Classifier:
    classifier = models.load(model.spec, classes=plan.job.data.classes)
    if classifier.digest != model.digest:
        raise WeightsError(
            f"{model.spec.name}: the weights here hash to {classifier.digest[:12]}, the driver's to "
            f"{model.digest[:12]}; give every machine the same cache or checkpoint"
        )
    return classifier.to(device)


def _distances(original: Tensor, adversarial: Tensor) -> dict[str, float]:
    """L∞ and L2 of a stored perturbation, on [0, 1]."""
    perturbation = adversarial.to(torch.float64) - original.to(torch.float64)
    return {"linf": float(perturbation.abs().max()) / 255, "l2": float(perturbation.norm()) / 255}


def _circumstances(device: torch.device, plan: Plan, started: float) -> dict[str, Any]:
    """Under what a result was made: with the same, a rerun gives the same bytes."""
    return {
        "batch_size": plan.job.batch_size,
        "worker": f"{platform.node()}:{os.getpid()}",
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - started, 3),
        "versions": {"gnp": __version__, **{name: version(name) for name in ("torch", "timm", "pillow", "webdataset")}},
    }
