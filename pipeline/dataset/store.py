"""A store as data: its results as one table, its samples by key, its images as batches to train on.

store = dataset.open("s3://bucket/prefix")
frame = store.results().to_pandas()              # or polars.from_arrow(store.results())
sample = store.sample("n01440764_10026")         # a notebook shows it as a picture
examples = store.examples(attacks=["gnp+mi"])    # batches for PyTorch: see pipeline.dataset.examples
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.analysis import drawing, picture
from pipeline.analysis.picture import Said
from pipeline.data import parts
from pipeline.data.parts import Images
from pipeline.dataset import snapshot
from pipeline.dataset.examples import Examples, Mix
from pipeline.dataset.snapshot import Choice
from pipeline.errors import MissingError, RecipeError
from pipeline.ledger import Ledger, Unit, markers
from pipeline.results import schema
from pipeline.results.predictions import predictions
from pipeline.storage.cache import Cache


@dataclass(frozen=True)
class Sample:
    """One image, clean and as every attack has left it.

    Attributes:
        key: Its key.
        shard: The input shard that it was in.
        label: Its true class.
        original: (H, W, 3) uint8.
        adversarial: Identities of source and attack → (H, W, 3) uint8, as stored.
        said: What targets say of it, an entry for each source and attack that has been scored.
        class_name: The name of a class index.
    """

    key: str
    shard: str
    label: int
    original: np.ndarray
    adversarial: dict[tuple[str, str], np.ndarray]
    said: tuple[Said, ...]
    class_name: Callable[[int], str]

    def png(self, said: Said | None = None) -> bytes:
        """Original, perturbation and adversarial image as a PNG, by default of the attack that fools the most targets.

        Raises:
            MissingError: No attack on it has been scored.
        """
        if not self.said:
            raise MissingError(f"{self.key}: no attack on it has been scored yet")
        said = said or max(self.said, key=lambda each: each.fooled)
        adversarial = self.adversarial[said.unit.source, said.unit.attack]
        return drawing.png(picture.draw(said, self.original, adversarial, class_name=self.class_name))

    def _repr_png_(self) -> bytes | None:
        return self.png() if self.said else None


class Dataset:
    """What a store holds; `open` makes one."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def results(self, kind: schema.Kind = "transfer") -> schema.Table:
        """Committed predictions as an Arrow table, a row an image and target; `pipeline.results.schema` has its columns.

        Args:
            kind: `transfer`, on adversarial images, or `clean`.

        Raises:
            IntegrityError: A file is damaged.
        """
        found = predictions(self.ledger, sorted(self.ledger.units(kind)))
        return schema.together(kind, (each.table for each in found))

    def sample(self, key: str) -> Sample:
        """One image by its key; where several have that key, by `SHARD/KEY` or `DATASET/SHARD/KEY`.

        Raises:
            MissingError: There is none.
            RecipeError: There are several.
        """
        found = [(unit, own) for unit, own in self._keys if key in _names(unit, own)]
        if not found:
            raise MissingError(f"sample {key!r}: {self.ledger.storage.url} holds no original of that key")
        if len(found) > 1:
            places = ", ".join(_names(unit, own)[-1] for unit, own in found[:5])
            raise RecipeError(
                f"sample {key!r} stands in several places ({places}); write SHARD/KEY or DATASET/SHARD/KEY"
            )
        ((unit, own),) = found
        original = self._images(unit)
        index = original.keys.index(own)
        made = [each for each in sorted(self.ledger.units(f"adversarial/{unit.dataset}")) if each.part == unit.part]
        told = [said for each in made for said in picture.of_part(self.ledger, each) if said.key == own]
        return Sample(
            key=own,
            shard=unit.part.shard,
            label=int(original.labels[index]),
            original=original.pixels[index].permute(1, 2, 0).numpy(),
            adversarial={(each.source, each.attack): picture.pixels(self.ledger, each, [own])[own] for each in made},
            said=tuple(told),
            class_name=picture.class_names(self.ledger, unit.dataset),
        )

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
        **mix: Any,
    ) -> Examples:
        """Adversarial images as batches for training, of what is committed now: a growing store does not change it.

        Args:
            datasets: What recipes call `[data]`, such as a training split; by default all, as with those that follow.
            sources: Names of models attacked.
            attacks: Names of attacks.
            epsilon: The budget, such as `"8/255"` or `8 / 255`.
            success: `any` or `all` of the targets scored, or a target's name: images on which the attack succeeded.
            only_successful: False keeps the others too, and batches say which is which.
            version: The id of a finalized version, or `latest`, instead of what is committed.
            rank: Which process of a distributed training run reads; by default as torch.distributed says.
            ranks: How many there are.
            padded: Each rank reads equally many images, the last ones some again.
            cache: A folder of this machine in which objects are kept.
            cache_bytes: How much of it.
            mix: What `pipeline.dataset.examples.Mix` takes: batch_size, pairs, clean, weights, seed, shuffled, parts_at_once.

        Raises:
            MissingError: Nothing adversarial is committed, or there is no such version.
            RecipeError: A name is none of the store's, no image is left, or a setting is wrong.
            IntegrityError: A marker or a result file is damaged.
        """
        budget = None if epsilon is None else _budget(epsilon)
        choice = Choice(_listed(datasets), _listed(sources), _listed(attacks), budget, success, only_successful)
        return Examples(
            snapshot.take(self.ledger, choice, version=version),
            Mix(**mix),
            rank=rank,
            ranks=ranks,
            padded=padded,
            cache=None if cache is None else Cache(Path(cache).expanduser().absolute(), cache_bytes),
        )

    @cached_property
    def _keys(self) -> list[tuple[Unit, str]]:
        """Every key and its original part: as predictions have it where there are any, for they are small."""
        originals = sorted(self.ledger.units("original"))
        scored: dict[Unit, Unit] = {}
        for unit in self.ledger.units("clean"):
            scored.setdefault(replace(unit, target=""), unit)
        found = [
            (replace(each.unit, target=""), str(key))
            for each in predictions(self.ledger, scored.values())
            for key in each.table.column("key").to_pylist()
        ]
        for unit in (each for each in originals if each not in scored):
            found += [(unit, key) for key in self._images(unit).keys]
        return found

    def _images(self, unit: Unit) -> Images:
        marker = self.ledger.marker(unit)
        return parts.read(self.ledger.read(marker), name=marker.object)


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    """A name alone is a list of one."""
    return [names] if isinstance(names, str) else names


def _budget(epsilon: Fraction | str | float) -> Fraction:
    """A budget as somebody writes it; a float such as 8/255 stands for the fraction next to it.

    Raises:
        RecipeError: It is none.
    """
    try:
        return Fraction(epsilon).limit_denominator(1_000_000)
    except (ValueError, OverflowError, ZeroDivisionError, TypeError) as error:
        raise RecipeError(f'epsilon: {epsilon!r} is no number; write "8/255" or 8 / 255') from error


def _names(original: Unit, key: str) -> tuple[str, str, str]:
    inside = f"{original.part.shard}/{key}"
    return key, inside, f"{original.dataset}/{inside}"


def open(store: str) -> Dataset:  # noqa: A001  # `dataset.open` is what it does
    """A store to read: a folder, or s3://bucket/prefix.

    Raises:
        MissingError: No run has written there.
    """
    return Dataset(markers.opened(store))
