"""A store as data: its results as one table, its samples by key, its images as batches to train on.

store = dataset.open("s3://bucket/prefix")
frame = store.results().to_pandas()              # or polars.from_arrow(store.results())
sample = store.sample("n01440764_10026")         # a notebook shows it as a picture
examples = store.examples(attacks=["gnp+mi"])    # batches for PyTorch: see pipeline.dataset.examples
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.analysis import drawing, picture, sample_view
from pipeline.analysis.sample_view import SampleView
from pipeline.data import parts
from pipeline.data.parts import Images
from pipeline.dataset.arguments import as_budget, as_cache, as_names, as_weights, require_types
from pipeline.dataset.examples import Examples
from pipeline.dataset.mix import Mix
from pipeline.dataset.snapshot import ImageFilter, require_one_size, take_snapshot
from pipeline.errors import MissingError, RecipeError
from pipeline.ledger import Ledger, Unit, open_ledger
from pipeline.results import schema
from pipeline.results.predictions import read_predictions


@dataclass(frozen=True)
class Sample:
    """One image, clean and under every attack.

    Attributes:
        key: Its key.
        shard: Name of its input shard.
        label: Its true class.
        original: (H, W, 3) uint8.
        adversarial: Identities of source and attack → (H, W, 3) uint8, as stored.
        views: The targets' predictions, one view per source and attack that has been scored.
        class_name: Class index → name.
    """

    key: str
    shard: str
    label: int
    original: np.ndarray
    adversarial: dict[tuple[str, str], np.ndarray]
    views: tuple[SampleView, ...]
    class_name: Callable[[int], str]

    def png(self, view: SampleView | None = None) -> bytes:
        """Original, perturbation and adversarial image as a PNG, by default of the attack that fools the most targets.

        Raises:
            MissingError: No attack on it has been scored.
        """
        if not self.views:
            raise MissingError(f"{self.key}: no attack on it has been scored yet")
        view = view or max(self.views, key=lambda view: view.targets_fooled)
        adversarial = self.adversarial[view.unit.source, view.unit.attack]
        return drawing.png(picture.draw(view, self.original, adversarial, class_name=self.class_name))

    def _repr_png_(self) -> bytes | None:
        return self.png() if self.views else None


class Dataset:
    """What a store holds; `open` makes one."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def results(self, kind: schema.ResultKind = "transfer") -> schema.Table:
        """Committed predictions as an Arrow table, one row per image and target, with the columns of `results.schema`.

        Args:
            kind: `transfer`, on adversarial images, or `clean`.

        Raises:
            RecipeError: There is no such kind.
            IntegrityError: A file is damaged.
        """
        require_types(Dataset.results, {"kind": kind})
        stored = read_predictions(self.ledger, sorted(self.ledger.list_units(kind)))
        return schema.concatenate(kind, (predictions.table for predictions in stored))

    def sample(self, key: str) -> Sample:
        """One image by its key; by `SHARD/KEY` or `DATASET/SHARD/KEY` if several have that key.

        Raises:
            MissingError: No image has that key.
            RecipeError: Several images have that key.
        """
        original_unit, sample_key = self._find(key)
        original = self._read_images(original_unit)
        index = original.keys.index(sample_key)
        committed = sorted(self.ledger.list_units(f"adversarial/{original_unit.dataset}"))
        attacked = [unit for unit in committed if unit.part == original_unit.part]
        views = [view for unit in attacked for view in sample_view.views_of_part(self.ledger, unit)]
        return Sample(
            key=sample_key,
            shard=original_unit.part.shard,
            label=int(original.labels[index]),
            original=original.pixels[index].permute(1, 2, 0).numpy(),
            adversarial={
                (unit.source, unit.attack): sample_view.read_pixels(self.ledger, unit, [sample_key])[sample_key]
                for unit in attacked
            },
            views=tuple(view for view in views if view.key == sample_key),
            class_name=sample_view.class_names(self.ledger, original_unit.dataset),
        )

    def _find(self, key: str) -> tuple[Unit, str]:
        """The original part and the key of an image."""
        matches = [(unit, sample_key) for unit, sample_key in self._keys if key in _names(unit, sample_key)]
        if not matches:
            raise MissingError(f"sample {key!r}: {self.ledger.storage.url} holds no original of that key")
        if len(matches) > 1:
            full_names = ", ".join(_names(unit, sample_key)[-1] for unit, sample_key in matches[:5])
            raise RecipeError(
                f"sample {key!r} stands in several places ({full_names}); write SHARD/KEY or DATASET/SHARD/KEY"
            )
        return matches[0]

    def examples(
        self,
        *,
        datasets: str | Sequence[str] = (),
        sources: str | Sequence[str] = (),
        attacks: str | Sequence[str] = (),
        epsilon: Fraction | str | float | None = None,
        success: str = "",
        only_successful: bool = True,
        version: str = "",
        rank: int | None = None,
        ranks: int | None = None,
        padded: bool = False,
        cache: str | Path | None = None,
        cache_bytes: int = 100 * 10**9,
        batch_size: int = 32,
        pairs: bool = False,
        clean: float = 0.0,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        shuffled: bool = True,
        parts_at_once: int = 4,
    ) -> Examples:
        """Adversarial images as batches for training, of what is committed now: a growing store does not change them.

        Args:
            datasets: Names of data in recipes' `[data]`, such as a training split; by default all.
            sources: Names of models attacked; by default all.
            attacks: Names of attacks; by default all.
            epsilon: The budget, such as `"8/255"` or `8 / 255`; by default all.
            success: `any` or `all` of the targets scored, or a target's name: images on which the attack succeeded.
            only_successful: False keeps the other images too, and batches flag the successful ones.
            version: The id of a finalized version, or `latest`, instead of what is committed now.
            rank: This process of a distributed training run; by default that of torch.distributed.
            ranks: Number of processes; by default that of torch.distributed.
            padded: Every rank reads the same number of images; the last ranks read some twice.
            cache: A local folder in which objects are kept.
            cache_bytes: Limit of its size.
            batch_size: Images per batch; the last batch of a worker has fewer, or one more, never a single image
                unless a rank has no other.
            pairs: Batches also hold the clean image of each adversarial one, as `clean`.
            clean: Share of clean images in an epoch, in [0, 1).
            weights: Attack (name or identity) → how often each of its images comes in an epoch; by default once.
            seed: Seed of the order.
            shuffled: If false, images come in the order in which they are stored.
            parts_at_once: Number of parts that are shuffled together; a worker holds up to three times as many in
                memory, encoded, and twice that with pairs.

        Raises:
            MissingError: No adversarial part is committed, or there is no such version.
            RecipeError: A name is not in the store, no image is left, images differ in size, or a setting is wrong.
            IntegrityError: A marker or a result file is damaged.
        """
        require_types(
            Dataset.examples,
            {"success": success, "only_successful": only_successful, "version": version, "rank": rank, "ranks": ranks}
            | {"padded": padded, "cache_bytes": cache_bytes, "batch_size": batch_size, "pairs": pairs, "clean": clean}
            | {"seed": seed, "shuffled": shuffled, "parts_at_once": parts_at_once},
        )
        image_filter = ImageFilter(
            as_names("datasets", datasets),
            as_names("sources", sources),
            as_names("attacks", attacks),
            as_budget(epsilon),
            success,
            only_successful,
        )
        mix = Mix(batch_size, pairs, clean, as_weights(weights), seed, shuffled, parts_at_once)
        snapshot = take_snapshot(self.ledger, image_filter, version=version)
        if batch_size > 1:
            require_one_size(snapshot, [self.ledger])
        return Examples(snapshot, mix, rank=rank, ranks=ranks, padded=padded, cache=as_cache(cache, cache_bytes))

    @cached_property
    def _keys(self) -> list[tuple[Unit, str]]:
        """Every original's part and key."""
        return list(self._list_keys())

    def _list_keys(self) -> Iterator[tuple[Unit, str]]:
        """Reads keys from clean predictions, which are small, and from images where a part has not been scored."""
        originals = sorted(self.ledger.list_units("original"))
        scored: dict[Unit, Unit] = {}
        for unit in self.ledger.list_units("clean"):
            scored.setdefault(replace(unit, target=""), unit)
        for predictions in read_predictions(self.ledger, scored.values()):
            original = replace(predictions.unit, target="")
            for key in predictions.table.column("key").to_pylist():
                yield original, str(key)
        for unit in originals:
            if unit not in scored:
                for key in self._read_images(unit).keys:
                    yield unit, key

    def _read_images(self, unit: Unit) -> Images:
        marker = self.ledger.read_marker(unit)
        return parts.decode_tar(self.ledger.read_data(marker), name=marker.object)


def _names(original: Unit, key: str) -> tuple[str, str, str]:
    """The names that `Dataset.sample` accepts for an image."""
    in_shard = f"{original.part.shard}/{key}"
    return key, in_shard, f"{original.dataset}/{in_shard}"


def open(store: str | Path) -> Dataset:  # noqa: A001  # callers write `dataset.open`
    """Opens a store for reading: a folder, or s3://bucket/prefix.

    Raises:
        RecipeError: It is neither.
        MissingError: No run has written there.
    """
    return Dataset(open_ledger(store))
