"""Original parts: resized uint8 images, read from the store where committed, otherwise decoded from the shard."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from torch import Tensor

from pipeline.data import codec, parts, shards
from pipeline.data.parts import Images
from pipeline.data.sample import Part, RejectedSample, Sample
from pipeline.data.shards import Shard
from pipeline.errors import SampleError, ShardError
from pipeline.ledger import CommittedParts, Unit
from pipeline.ledger.progress import StageTotals
from pipeline.plan.outline import Item, item_parts
from pipeline.stages.prefetch import map_in_order
from pipeline.stages.stage import Stage

# Reads or makes a part's original images.
ReadOriginals: TypeAlias = Callable[[], Images]


class OriginalParts:
    """The original parts of one item.

    Args:
        stage: The generator that attacks them.
        item: The item.
        committed: Which of its units are committed.
        attempt: Which attempt at the item this is, for the markers.
    """

    def __init__(self, stage: Stage, item: Item, committed: CommittedParts, *, attempt: int) -> None:
        self._stage = stage
        self._item = item
        self._committed = committed
        self._attempt = attempt
        self._dataset = stage.plan.dataset

    def incomplete(self) -> Iterator[tuple[Part, ReadOriginals]]:
        """The parts that lack an original or an attack, each with the call that reads or makes its originals.

        The shard is fetched only if an original is missing, or the number of parts is not known yet.

        Raises:
            ShardError: The shard is truncated, damaged or empty, or has changed since its first part was committed.
        """
        known = item_parts(self._item, self._committed)
        if known is not None:
            missing = [part for part in known if not self._is_complete(part)]
            if all(Unit(self._dataset, part) in self._committed for part in missing):
                for part in missing:
                    yield part, partial(self._read, part)
                return
        with contextlib.ExitStack() as spooled:
            with self._stage.timed("get", self._item):
                shard = spooled.enter_context(shards.download_shard(self._item.selection.shard))
            self._require_unchanged(shard)
            for part, indices in self._parts_of(shard):
                if Unit(self._dataset, part) not in self._committed:
                    yield part, partial(self._make, part, shard, indices)
                elif not self._is_complete(part):
                    yield part, partial(self._read, part)

    def _is_complete(self, part: Part) -> bool:
        adversarial = (Unit(self._dataset, part, self._item.source, attack) for attack in self._stage.plan.attacks)
        return Unit(self._dataset, part) in self._committed and all(unit in self._committed for unit in adversarial)

    def _require_unchanged(self, shard: Shard) -> None:
        ledger = self._stage.ledger
        earlier = next(iter(ledger.list_units(f"original/{self._dataset}/{shard.name}")), None)
        if earlier is not None and ledger.read_marker(earlier).fact("shard")["sha256"] != shard.sha256:
            url = self._item.selection.shard.url
            raise ShardError(f"{url}: changed since its first parts were made; restore it or rename it")

    def _parts_of(self, shard: Shard) -> Iterator[tuple[Part, range]]:
        """The item's parts, and the indices of their samples in the shard."""
        shard.require_samples()
        most = self._item.selection.images
        total = len(shard) if most is None else min(len(shard), most)
        size = self._stage.plan.job.data.part_size
        count = -(-total // size)
        for index in range(self._item.offset, count, self._item.stride):
            yield Part(shard.name, index, count), range(index * size, min((index + 1) * size, total))

    def _read(self, part: Part) -> Images:
        return self._stage.read_part(Unit(self._dataset, part), self._item)[1]

    def _make(self, part: Part, shard: Shard, indices: range) -> Images:
        """Decodes and commits a part; returns what the store then holds, which another worker may have committed."""
        stage, item, started = self._stage, self._item, time.monotonic()
        spec = stage.plan.job.data
        samples = shard.samples(indices, classes=spec.classes, label=spec.label)
        chosen = (sample for sample in samples if spec.includes(part.shard, sample.key))
        with stage.timed("decode", item):
            decoded = list(map_in_order(self._decode, chosen, threads=stage.threads))
        usable = [sample for sample in decoded if not isinstance(sample, RejectedSample)]
        quarantined = [sample for sample in decoded if isinstance(sample, RejectedSample)]
        images = parts.stack([sample for sample, _ in usable], [pixels for _, pixels in usable])
        with stage.timed("encode", item):
            tar = parts.encode_tar(images, images.pixels, threads=stage.threads)
        pixels_sha256 = codec.pixels_sha256(images.pixels)
        facts = {
            "n_in": len(decoded),
            "n_ok": len(usable),
            "n_not_chosen": len(indices) - len(decoded),
            "n_quarantined": len(quarantined),
            "quarantined": [{"key": sample.key, "reason": sample.reason} for sample in quarantined],
            "pixels_sha256": pixels_sha256,
            "shard": {
                "url": item.selection.shard.url,
                "size_bytes": shard.size_bytes,
                "version": item.selection.shard.version,
                "sha256": shard.sha256,
            },
            **stage.execution_facts(batch_size=None, started=started, attempt=self._attempt),
        }
        with stage.timed("put", item):
            marker = stage.ledger.commit(Unit(self._dataset, part), tar, "tar", facts)
        stage.add_totals(StageTotals(originals=1, quarantined=len(quarantined)), item)
        return images if marker.fact("pixels_sha256") == pixels_sha256 else self._read(part)

    def _decode(self, sample: Sample | RejectedSample) -> tuple[Sample, Tensor] | RejectedSample:
        """A sample, without its file bytes to save memory, and its pixels; or why it cannot be used."""
        if isinstance(sample, RejectedSample):
            return sample
        try:
            return replace(sample, image=b""), codec.decode(sample.image, self._stage.plan.job.data.preparation)
        except SampleError as error:
            return RejectedSample(sample.key, str(error))
