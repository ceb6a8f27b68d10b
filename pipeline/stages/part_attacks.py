"""Attacks on the images of one part: target classes, adversarial images in batches, the source's predictions."""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.attack.batch import AdmixPool, GradientCounter
from pipeline.attack.loop import Iterative
from pipeline.attack.recipe import Attack
from pipeline.data import codec, parts
from pipeline.data.parts import Images
from pipeline.models import predict
from pipeline.models.batch_size import run_in_batches
from pipeline.plan.external import ExternalAttack, ExternalImages
from pipeline.stages.adversarial import AdversarialPart
from pipeline.stages.first_prediction import record_first_prediction
from pipeline.stages.stage import Stage


@dataclass(frozen=True)
class LoadedSource:
    """A source model on its device.

    Attributes:
        id: Identity of the source.
        network: Maps (B, 3, H, W) in [0, 1] to logits (B, classes).
        nondeterministic: On a GPU: the operations of its gradient that may not repeat their bytes.
    """

    id: str
    network: nn.Module
    nondeterministic: tuple[str, ...] = ()


class PartAttacks:
    """The attacks on one part's original images, from one source; its predictions on them are computed once.

    Args:
        stage: The generator.
        images: The originals.
        attempt: Which attempt at the item this is, for the markers.
    """

    def __init__(self, stage: Stage, images: Images, *, attempt: int) -> None:
        self._stage = stage
        self._images = images
        self._attempt = attempt
        # The part, so that mixing does not depend on the batch; on the device, where every step takes images from it.
        self._pool = AdmixPool(images.pixels.to(stage.device), images.labels.to(stage.device))
        self._clean = torch.full_like(images.labels, -1)  # the source's predictions on the originals; −1: not yet known

    def run(self, attack: Attack, source: LoadedSource) -> AdversarialPart:
        """Attacks the images.

        Raises:
            ShardError: The attack takes target classes from the shard, and an image has none.
            FloatingPointError: A gradient, or a prediction of the source, is not finite.
        """
        stage, images, started = self._stage, self._images, time.monotonic()
        target_classes = self._target_classes(attack, source)
        counter = GradientCounter()
        with stage.timed("gradient"):
            pixels, batch_size = self._adversarial(attack, source, target_classes, counter)
        if (self._clean < 0).any():
            self._clean.copy_(self._predict(source, images))
        predicted = self._predict(source, replace(images, pixels=pixels))
        return AdversarialPart(
            images=replace(images, target_classes=target_classes),
            pixels=pixels,
            predictions=[
                {"source_prediction_clean": clean, "source_prediction_adversarial": adversarial}
                for clean, adversarial in zip(self._clean.tolist(), predicted.tolist(), strict=True)
            ],
            facts={
                "gradients": counter.gradients,
                **({} if stage.device.type == "cpu" else {"nondeterministic": list(source.nondeterministic)}),
                **stage.execution_facts(batch_size=batch_size, started=started, attempt=self._attempt),
            },
        )

    def read_external(self, attack: ExternalAttack, source: ExternalImages) -> AdversarialPart:
        """Reads another program's adversarial images, unchanged.

        Raises:
            ShardError: An image is missing, damaged, or outside the attack's budget.
            IntegrityError: A file has changed since the run began.
        """
        stage, images, started = self._stage, self._images, time.monotonic()
        with stage.timed("get"):
            pixels = source.read_pixels(images, attack)
        return AdversarialPart(
            images=replace(images, target_classes=torch.full_like(images.labels, -1)),
            pixels=pixels,
            predictions=[{} for _ in images.keys],
            facts={
                "gradients": None,
                "files": {key: file.sha256 for key in images.keys if (file := source.find(key))},
                **stage.execution_facts(batch_size=None, started=started, attempt=self._attempt),
            },
        )

    def _target_classes(self, attack: Attack, source: LoadedSource) -> Tensor:
        """The attack's target class of each image, (N,) int64; −1 throughout if it is untargeted."""
        images, device = self._images, self._stage.device
        none = torch.full_like(images.labels, -1)
        if attack.target_class is None:
            return none
        if attack.target_class == "shard":
            parts.require_target_classes(images, attack.name)

        def choose(batch: slice) -> Tensor:
            pixels, labels, stored = (
                whole[batch].to(device) for whole in (images.pixels, images.labels, images.target_classes)
            )
            chosen = attack.target_classes(source.network, codec.to_float(pixels), labels, images.keys[batch], stored)
            assert chosen is not None
            return chosen.cpu()

        chosen, _ = run_in_batches(choose, len(images.keys), self._prediction_size(source, images))
        return torch.cat([none[:0], *chosen])

    def _adversarial(
        self, attack: Attack, source: LoadedSource, target_classes: Tensor, counter: GradientCounter
    ) -> tuple[Tensor, int]:
        """The adversarial images as stored, (N, 3, H, W) uint8, and the batch size that fitted into memory.

        The attack's gradients are counted in `counter`. Where it starts with a forward pass on the originals in full
        precision, their predictions are kept.
        """
        images = self._images
        precision = attack.precision if isinstance(attack, Iterative) else ""
        # Predictions in another precision may differ, and are dropped.
        clean = self._clean if precision == "float32" else torch.empty_like(self._clean)

        def one_step(batch: Images) -> None:
            shorter = replace(attack, steps=1) if isinstance(attack, Iterative) else attack
            self._attack_batch(shorter, source, batch, batch.labels, torch.empty_like(batch.labels), counter)

        def all_steps(batch: slice) -> Tensor:
            some = parts.select(images, range(batch.start, batch.stop))
            return self._attack_batch(attack, source, some, target_classes[batch], clean[batch], counter)

        work = (source.id, "gradients", attack.enlargement, precision)
        size = self._stage.choose_batch_size(work, images, one_step)
        pixels, fitted = run_in_batches(all_steps, len(images.keys), size)
        if fitted < size:  # this attack needs more memory than the one that the size was measured with
            self._stage.lower_batch_size(work, fitted)
        return torch.cat([images.pixels[:0], *pixels]), fitted

    def _attack_batch(
        self,
        attack: Attack,
        source: LoadedSource,
        batch: Images,
        target_classes: Tensor,
        clean: Tensor,
        counter: GradientCounter,
    ) -> Tensor:
        """One batch's adversarial images, (B, 3, H, W) uint8; `clean` (B,) may receive the source's predictions."""
        device = self._stage.device
        pixels = batch.pixels.to(device)
        labels = batch.labels.to(device)
        targets = None if attack.target_class is None else target_classes.to(device)
        counter.gradients = 0  # counted per image, and the same in every batch
        originals = codec.to_float(pixels)
        with record_first_prediction(source.network, originals, clean):
            adversarial = attack(
                source.network, originals, labels, batch.keys, target_classes=targets, pool=self._pool, counter=counter
            )
        return codec.quantise(adversarial, pixels, attack.epsilon, attack.norm).cpu()

    def _predict(self, source: LoadedSource, images: Images) -> Tensor:
        """The source's predictions, (N,) int64."""
        device = self._stage.device
        with self._stage.timed("answer"):
            size = self._prediction_size(source, images)
            predictions = predict.predict(
                source.network, images.pixels, images.labels, batch_size=size, device=device, name=f"source {source.id}"
            )
            return predictions.prediction

    def _prediction_size(self, source: LoadedSource, images: Images) -> int:
        """The batch size for forward passes without gradients."""

        def predict_all(batch: Images) -> None:
            every = slice(0, len(batch.keys))
            with torch.inference_mode():
                predict.predict_probabilities(
                    source.network,
                    batch.pixels,
                    every,
                    device=self._stage.device,
                    defenses=None,
                    name=f"source {source.id}",
                )

        return self._stage.choose_batch_size((source.id, "answers"), images, predict_all)
