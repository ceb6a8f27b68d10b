"""Adversarial parts: what is recorded about each image and each part, and how it is committed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.attack.recipe import Attack
from pipeline.data import codec, parts
from pipeline.data.parts import Images
from pipeline.ledger import Unit
from pipeline.models.registry import ResolvedSource
from pipeline.plan.external import ExternalAttack, ExternalImages
from pipeline.plan.resolve import attack_provenance
from pipeline.stages.stage import Stage


@dataclass(frozen=True)
class AdversarialPart:
    """The adversarial images of one part, from one source by one attack.

    Attributes:
        images: The originals, with the attack's target classes.
        pixels: (N, 3, H, W) uint8, the adversarial images.
        predictions: The source's predictions on each image, as they are recorded; empty where it was not run.
        facts: Facts for the marker, beside those about the attack and the pixels.
    """

    images: Images
    pixels: Tensor
    predictions: Sequence[Mapping[str, int]]
    facts: Mapping[str, Any]

    def commit(
        self, stage: Stage, unit: Unit, attack: Attack | ExternalAttack, source: ResolvedSource | ExternalImages
    ) -> None:
        """Encodes and commits the part; does not use the device."""
        records = self._records(attack, source)
        extra = [{"json": json.dumps(record, sort_keys=True).encode()} for record in records]
        with stage.timed("encode"):
            tar = parts.encode_tar(self.images, self.pixels, extra, threads=stage.threads)
        facts = {
            "n": len(self.images.keys),
            "attack": attack_provenance(attack),
            "source": source.identity,
            "pixels_sha256": codec.pixels_sha256(self.pixels),
            "original_pixels_sha256": codec.pixels_sha256(self.images.pixels),
            **self.facts,
        }
        with stage.timed("put"):
            stage.ledger.commit(unit, tar, "tar", facts)

    def _records(
        self, attack: Attack | ExternalAttack, source: ResolvedSource | ExternalImages
    ) -> list[dict[str, Any]]:
        """What is stored beside each image, as JSON values."""
        images = self.images
        rows = zip(images.keys, images.labels.tolist(), images.pixels, self.pixels, self.predictions, strict=True)
        return [
            {
                "key": key,
                "label": label,
                "source": source.spec.name,
                "attack": attack_provenance(attack),
                "epsilon": float(attack.epsilon),
                "seed": attack.seed,
                **predictions,
                **_distances(original, adversarial),
            }
            for key, label, original, adversarial, predictions in rows
        ]


def _distances(original: Tensor, adversarial: Tensor) -> dict[str, float]:
    """L∞ and L2 norm of a stored perturbation, on [0, 1]."""
    perturbation = adversarial.to(torch.float64) - original.to(torch.float64)
    return {"linf": float(perturbation.abs().max()) / 255, "l2": float(perturbation.norm()) / 255}
