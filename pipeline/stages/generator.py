"""Items → original and adversarial parts."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.attack.batch import Pool, Tally
from pipeline.attack.loop import Iterative
from pipeline.attack.recipe import Attack
from pipeline.data import codec, parts, shards
from pipeline.data.parts import Images
from pipeline.data.sample import Part, Rejected, Sample
from pipeline.data.shards import Shard
from pipeline.errors import SampleError, ShardError
from pipeline.ledger import Committed, Unit
from pipeline.ledger.progress import Made
from pipeline.models import batch_size as batches
from pipeline.models import predict, registry
from pipeline.models.registry import Source
from pipeline.plan.external import Foreign, ForeignAttack
from pipeline.plan.outline import Item, item_parts, scopes
from pipeline.plan.resolve import described
from pipeline.stages.overheard import first_answer
from pipeline.stages.prefetch import Ahead, Behind, Next, mapped
from pipeline.stages.stage import Failures, Stage


class Generator(Stage):
    """Turns items into original and adversarial parts; owns a device and one source model at a time."""

    def open(self) -> None:
        """Starts without a model: the first item says which source is wanted."""
        self._loaded: tuple[str, nn.Module] | None = None
        self._next = Next[Item, Ahead[Part, Images]]()
        self._following: Callable[[], None] | None = None

    def prepare(self, item: Item, require: Callable[[], None]) -> None:
        """Has an item that is likely to be next read beside the attack on the last part of the one at hand."""

        def read() -> Ahead[Part, Images]:
            require()
            return self._read(item, attempt=1)

        # Not before the shard at hand is let go: two at once might not fit into the disk, where either does.
        self._following = partial(self._next.begin, item, read)

    @contextlib.contextmanager
    def _following_forgotten(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._following = None

    def _begin_following(self) -> None:
        following, self._following = self._following, None
        if following is not None:
            following()

    def _read(self, item: Item, attempt: int) -> Ahead[Part, Images]:
        return Ahead(self._originals(item, self._committed(item), attempt))

    def _committed(self, item: Item) -> Committed:
        return self.ledger.committed(scopes(self.plan.outline, item.source), shard=item.take.shard.name)

    def run(self, item: Item, *, attempt: int = 1) -> Made:
        """Makes what is missing of an item's originals and attacks.

        A part or an attack that fails does not keep the others from being made; its error is raised at the end.

        Raises:
            ShardError: The shard is truncated, damaged or empty.
            StorageError: The store failed.
            WeightsError: The source's weights are gone or damaged.
            FloatingPointError: A gradient is not finite.
            Interrupted: It was told to stop, and did so between two units.
        """
        self.begin(item)
        failures, committed = Failures(), self._committed(item)
        originals = self._next.take(item) or self._read(item, attempt)
        with contextlib.closing(originals), Behind() as behind, self._following_forgotten():
            for part, read in originals:
                self.require_going_on()
                with failures.noted():
                    images = read()
                    if originals.ended:
                        self._begin_following()
                    clean = torch.full_like(images.labels, -1)
                    for attack_id, attack in self.plan.attacks.items():
                        unit = Unit(self.plan.dataset, part, item.source, attack_id)
                        if unit in committed:
                            continue
                        self.require_going_on()
                        with failures.noted():
                            if isinstance(attack, ForeignAttack):
                                commit = self._taken_over(unit, attack, images, attempt)
                            else:
                                source = self._source(item.source)
                                commit = self._attacked(unit, attack, source, images, clean, attempt)
                            behind.call(partial(self.put_away, commit, len(images.keys), failures))
        failures.tell()
        return self.collected()

    def _originals(self, item: Item, committed: Committed, attempt: int) -> Iterator[tuple[Part, Callable[[], Images]]]:
        """The item's parts that need work, and how to come by their images.

        They are read from the store where they are committed, else made from the shard.
        """
        known = item_parts(item, committed)
        if known is not None:
            missing = [part for part in known if not self._has_attacks(part, item.source, committed)]
            if all(Unit(self.plan.dataset, part) in committed for part in missing):
                for part in missing:
                    yield part, partial(self._stored, Unit(self.plan.dataset, part), item)
                return
        with contextlib.ExitStack() as spooled:
            with self.timed("get", item):
                shard = spooled.enter_context(shards.spool(item.take.shard))
            self._require_same(item, shard)
            for part, indices in self._parts(item, shard):
                unit = Unit(self.plan.dataset, part)
                if unit not in committed:
                    yield part, partial(self._make_original, unit, shard, indices, item, attempt)
                elif not self._has_attacks(part, item.source, committed):
                    yield part, partial(self._stored, unit, item)

    def _require_same(self, item: Item, shard: Shard) -> None:
        before = next(iter(self.ledger.units(f"original/{self.plan.dataset}/{shard.name}")), None)
        if before is not None and self.ledger.marker(before).fact("shard")["sha256"] != shard.sha256:
            raise ShardError(f"{item.take.shard.url}: changed since its first parts were made; restore it or rename it")

    def _stored(self, original: Unit, item: Item) -> Images:
        return self.fetched(original, item)[1]

    def _has_attacks(self, part: Part, source: str, committed: Committed) -> bool:
        wanted = (Unit(self.plan.dataset, part, source, attack) for attack in self.plan.attacks)
        return Unit(self.plan.dataset, part) in committed and all(unit in committed for unit in wanted)

    def _parts(self, item: Item, shard: Shard) -> Iterator[tuple[Part, range]]:
        """The item's parts, and which of the shard's samples are in each."""
        total = len(shard) if item.take.images is None else min(len(shard), item.take.images)
        if not total:
            raise ShardError(f"shard {shard.name}: it holds no samples; leave it out of the recipe")
        size = self.plan.job.data.part_size
        count = -(-total // size)
        for index in range(item.offset, count, item.stride):
            yield Part(shard.name, index, count), range(index * size, min((index + 1) * size, total))

    def _make_original(self, unit: Unit, shard: Shard, indices: range, item: Item, attempt: int) -> Images:
        """Decodes, prepares and commits a part; what stands in the store afterwards is what is attacked."""
        spec, started = self.plan.job.data, time.monotonic()
        samples = shard.samples(indices, classes=spec.classes)
        chosen = (sample for sample in samples if spec.chooses(unit.part.shard, sample.key))
        with self.timed("decode", item):
            prepared = list(mapped(self._prepared, chosen, threads=self.threads))
        kept = [each for each in prepared if not isinstance(each, Rejected)]
        quarantined = [each for each in prepared if isinstance(each, Rejected)]
        images = parts.stack([sample for sample, _ in kept], [pixels for _, pixels in kept])
        with self.timed("encode", item):
            tar = parts.files(images, images.pixels, threads=self.threads)
        facts = {
            "n_in": len(prepared),
            "n_ok": len(kept),
            "n_not_chosen": len(indices) - len(prepared),
            "n_quarantined": len(quarantined),
            "quarantined": [{"key": rejected.key, "reason": rejected.reason} for rejected in quarantined],
            "pixels_sha256": codec.pixels_sha256(images.pixels),
            "shard": {
                "url": item.take.shard.url,
                "size_bytes": shard.size_bytes,
                "version": item.take.shard.version,
                "sha256": shard.sha256,
            },
            **self.circumstances(batch_size=None, started=started, attempt=attempt),
        }
        with self.timed("put", item):
            marker = self.ledger.commit(unit, tar, "tar", facts)
        self.count(Made(quarantined=len(quarantined)), item)
        return images if marker.fact("pixels_sha256") == facts["pixels_sha256"] else self._stored(unit, item)

    def _prepared(self, sample: Sample | Rejected) -> tuple[Sample, Tensor] | Rejected:
        """A sample, without its file, which is not needed any more, and its pixels; or why it cannot be used."""
        if isinstance(sample, Rejected):
            return sample
        try:
            return replace(sample, image=b""), codec.decode(sample.image, self.plan.job.data.preparation)
        except SampleError as error:
            return Rejected(sample.key, str(error))

    def _attacked(
        self, unit: Unit, attack: Attack, source: nn.Module, images: Images, clean: Tensor, attempt: int
    ) -> Callable[[], None]:
        """Attacks a part's images; returns what commits the result, which the device has no part in.

        `clean` holds the source's predictions on the images, −1 as long as nobody has asked it; now it is asked.
        """
        started = time.monotonic()
        wanted = self._wanted(attack, source, images)
        tally = Tally()
        with self.timed("gradient"):
            pixels, batch_size = self._adversarial(attack, source, images, wanted, clean, tally)
        if (clean < 0).any():
            clean.copy_(self._predict(source, images))
        fooled = self._predict(source, replace(images, pixels=pixels))
        said = [
            {"source_prediction_clean": before, "source_prediction_adversarial": after}
            for before, after in zip(clean.tolist(), fooled.tolist(), strict=True)
        ]
        facts = {
            "gradients": tally.gradients,
            **self.circumstances(batch_size=batch_size, started=started, attempt=attempt),
        }
        return partial(self._commit, unit, attack, replace(images, target_classes=wanted), pixels, said, facts)

    def _taken_over(self, unit: Unit, attack: ForeignAttack, images: Images, attempt: int) -> Callable[[], None]:
        """What commits another program's images of a part, as they are."""
        started = time.monotonic()
        source = self._resolved(unit.source)
        assert isinstance(source, Foreign)
        with self.timed("get"):
            pixels = source.pixels(images, attack)
        files = {key: source.files[key].sha256 for key in images.keys}
        facts = {
            "gradients": None,
            "files": files,
            **self.circumstances(batch_size=None, started=started, attempt=attempt),
        }
        untargeted = replace(images, target_classes=torch.full_like(images.labels, -1))
        return partial(self._commit, unit, attack, untargeted, pixels, [{} for _ in images.keys], facts)

    def _commit(
        self,
        unit: Unit,
        attack: Attack | ForeignAttack,
        images: Images,
        pixels: Tensor,
        said: Sequence[dict[str, Any]],
        facts: dict[str, Any],
    ) -> None:
        """Commits adversarial images, with what is to be known of each, and of all of them."""
        source = self._resolved(unit.source)
        told = zip(images.keys, images.labels.tolist(), images.pixels, pixels, said, strict=True)
        extra = [
            {
                "key": key,
                "label": label,
                "source": source.spec.name,
                "attack": described(attack),
                "epsilon": float(attack.epsilon),
                "seed": attack.seed,
                **predictions,
                **_distances(original, adversarial),
            }
            for key, label, original, adversarial, predictions in told
        ]
        told_as_json = [{"json": json.dumps(each, sort_keys=True).encode()} for each in extra]
        with self.timed("encode"):
            tar = parts.files(images, pixels, told_as_json, threads=self.threads)
        about = {
            "n": len(images.keys),
            "attack": described(attack),
            "source": source.identity,
            "pixels_sha256": codec.pixels_sha256(pixels),
            "original_pixels_sha256": codec.pixels_sha256(images.pixels),
        }
        with self.timed("put"):
            self.ledger.commit(unit, tar, "tar", {**about, **facts})

    def _wanted(self, attack: Attack, source: nn.Module, images: Images) -> Tensor:
        """The classes that an attack is to reach, (N,) int64; −1 throughout where it is untargeted.

        Raises:
            ShardError: The attack wants the shard's own, and an image has none.
        """
        none = torch.full_like(images.labels, -1)
        if attack.target_class is None:
            return none
        if attack.target_class == "shard" and (images.target_classes < 0).any():
            key = images.keys[int((images.target_classes < 0).int().argmax())]
            raise ShardError(
                f"sample {key!r} has no target class, which {attack.name} wants; pack the shard again, under another "
                f"name, with a file {key}.target"
            )

        def of_batch(batch: slice) -> Tensor:
            pixels, labels, given = (
                whole[batch].to(self.device) for whole in (images.pixels, images.labels, images.target_classes)
            )
            found = attack.target_classes(source, codec.to_float(pixels), labels, images.keys[batch], given)
            assert found is not None
            return found.cpu()

        made, _ = batches.run(of_batch, len(images.keys), self._answers_size(source, images))
        return torch.cat([none[:0], *made])

    def _adversarial(
        self, attack: Attack, source: nn.Module, images: Images, wanted: Tensor, clean: Tensor, tally: Tally
    ) -> tuple[Tensor, int]:
        """The attack on every image, as stored: (N, 3, H, W) uint8; the batch size that fitted; and counts the cost.

        Where the attack asks the source about the clean images in full precision, the answers go to `clean`.
        """
        pool = Pool(images.pixels, images.labels)  # the part, so that what is mixed in does not depend on the batch

        def attack_batch(some: Images, attack: Attack, wanted: Tensor, heard: Tensor) -> Tensor:
            pixels, labels = some.pixels.to(self.device), some.labels.to(self.device)
            classes = None if attack.target_class is None else wanted.to(self.device)
            tally.gradients = 0  # each batch costs an image the same
            originals = codec.to_float(pixels)
            with first_answer(source, originals, heard):
                adversarial = attack(
                    source, originals, labels, some.keys, target_classes=classes, pool=pool, tally=tally
                )
            return codec.quantise(adversarial, pixels, attack.epsilon, attack.norm).cpu()

        def one_step(some: Images) -> None:
            shorter = replace(attack, steps=1) if isinstance(attack, Iterative) else attack
            attack_batch(some, shorter, some.labels, torch.empty_like(some.labels))

        def attack_slice(batch: slice) -> Tensor:
            some = parts.taken(images, range(batch.start, batch.stop))
            return attack_batch(some, attack, wanted[batch], heard[batch])

        precision = attack.precision if isinstance(attack, Iterative) else ""
        # What is said in another precision may be something else.
        heard = clean if precision == "float32" else torch.empty_like(clean)
        work = (self._loaded_id, "gradients", attack.enlargement, precision)
        size = self.batch_size(work, images, one_step)
        made, batch_size = batches.run(attack_slice, len(images.keys), size)
        if batch_size < size:
            self._fastest[work] = batch_size  # an attack may need more than the one that it was tried with
        return torch.cat([images.pixels[:0], *made]), batch_size

    def _answers_size(self, source: nn.Module, images: Images) -> int:
        """How many images at a time a source is asked about, when it is not attacked."""

        def ask_all(some: Images) -> None:
            with torch.inference_mode():
                predict.ask(source, some.pixels, slice(0, len(some.keys)), device=self.device, behind=None)

        return self.batch_size((self._loaded_id, "answers"), images, ask_all)

    def _predict(self, source: nn.Module, images: Images) -> Tensor:
        with self.timed("answer"):
            size = self._answers_size(source, images)
            return predict.predict(source, images.pixels, images.labels, batch_size=size, device=self.device).prediction

    def _resolved(self, identity: str) -> Source | Foreign:
        return next(source for source in self.plan.sources if source.id == identity)

    @property
    def _loaded_id(self) -> str:
        assert self._loaded is not None
        return self._loaded[0]

    def _source(self, identity: str) -> nn.Module:
        if self._loaded is None or self._loaded[0] != identity:
            model = self._resolved(identity)
            assert not isinstance(model, Foreign)
            self._loaded = None  # the old one is let go before the new one is loaded
            storage, classes = self.ledger.storage, self.plan.job.data.classes
            source = registry.load_source(model, storage, classes=classes, device=self.device)
            self._loaded = (identity, source)
        return self._loaded[1]


def _distances(original: Tensor, adversarial: Tensor) -> dict[str, float]:
    """L∞ and L2 of a stored perturbation, on [0, 1]."""
    perturbation = adversarial.to(torch.float64) - original.to(torch.float64)
    return {"linf": float(perturbation.abs().max()) / 255, "l2": float(perturbation.norm()) / 255}
