"""A store as data: its results as one table, its samples by key.

store = dataset.open("s3://bucket/prefix")
frame = store.results().to_pandas()              # or polars.from_arrow(store.results())
sample = store.sample("n01440764_10026")         # a notebook shows it as a picture
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline import drawing, ledger, parts, picture, results
from pipeline.errors import MissingError, RecipeError
from pipeline.ledger import Ledger, Unit
from pipeline.parts import Images
from pipeline.picture import Said
from pipeline.predictions import predictions


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

    def results(self, kind: results.Kind = "transfer") -> results.Table:
        """Committed predictions as an Arrow table, a row an image and target; `pipeline.results` has its columns.

        Args:
            kind: `transfer`, on adversarial images, or `clean`.

        Raises:
            IntegrityError: A file is damaged.
        """
        found = predictions(self.ledger, sorted(self.ledger.units(kind)))
        return results.together(kind, (each.table for each in found))

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


def _names(original: Unit, key: str) -> tuple[str, str, str]:
    inside = f"{original.part.shard}/{key}"
    return key, inside, f"{original.dataset}/{inside}"


def open(store: str) -> Dataset:  # noqa: A001  # `dataset.open` is what it does
    """A store to read: a folder, or s3://bucket/prefix.

    Raises:
        MissingError: No run has written there.
    """
    return Dataset(ledger.opened(store))
