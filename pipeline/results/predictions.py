"""Stored predictions, part by part: where a target was right, and where an attack did what it wanted."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.data.sample import Part
from pipeline.errors import IntegrityError
from pipeline.ledger import Ledger, Marker, Unit, slug
from pipeline.results import schema

Denominator = Literal["all", "target", "joint"]
# What each counts, for people.
COUNTED: dict[Denominator, str] = {
    "all": "all images",
    "target": "images that the target classifies correctly when clean",
    "joint": "images that every target classifies correctly when clean",
}


@dataclass(frozen=True)
class Predictions:
    """One result file: its unit, its address and its rows.

    Attributes:
        unit: What it stands for.
        where: Its address.
        table: Its rows, one an image.
    """

    unit: Unit
    where: str
    table: schema.Table

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, (rows,)."""
        return np.asarray(self.table.column(name))

    def constant(self, name: str) -> Any:
        """The value of a column that is the same in every row."""
        return self.table.column(name)[0].as_py()

    @property
    def correct(self) -> np.ndarray:
        """Where the answer is the label, (rows,) bool; who abstains is not right."""
        return np.asarray((self.column("prediction") == self.column("label")) & ~self.column("abstained"))

    @property
    def fooled(self) -> np.ndarray:
        """Where the attack succeeded, (rows,) bool: the answer is not the label, or is the class that was wanted."""
        wanted = self.table.column("target_class")
        reached = (self.column("prediction") == np.asarray(wanted.fill_null(-1))) & ~self.column("abstained")
        return np.where(np.asarray(wanted.is_null()), ~self.correct, reached)

    @property
    def attacked(self) -> np.ndarray:
        """Where there was something to reach, (rows,) bool: not where the wanted class is the label itself."""
        wanted = self.table.column("target_class")
        return np.asarray(np.asarray(wanted.fill_null(-1)) != self.column("label"))

    def counted(self, clean: "Predictions", everywhere: np.ndarray) -> dict[Denominator, np.ndarray]:
        """Which images count under each denominator, (rows,) bool.

        Args:
            clean: The same target's predictions on the same images, clean.
            everywhere: Where every target is right when clean, (rows,) bool.

        Raises:
            IntegrityError: The two files hold different images.
        """
        self.require_images_of(clean)
        return {
            "all": self.attacked,
            "target": self.attacked & clean.correct,
            "joint": self.attacked & everywhere,
        }

    def require_images_of(self, other: "Predictions") -> None:
        """Checks that row by row two files speak of the same images.

        Raises:
            IntegrityError: They do not.
        """
        if not self.table.column("key").equals(other.table.column("key")):
            raise IntegrityError(f"{self.where}: holds other images than {other.where}; run verify")


def predictions(ledger: Ledger, units: Iterable[Unit]) -> Iterator[Predictions]:
    """The result files of units; those of parts whose images were all quarantined hold nothing and are passed over.

    Raises:
        IntegrityError: A file is damaged.
    """
    return of(ledger, ledger.markers(units))


def of(ledger: Ledger, markers: Iterable[Marker]) -> Iterator[Predictions]:
    """The same of markers that one has.

    Raises:
        IntegrityError: A file is damaged.
    """
    for marker in markers:
        table = schema.read(ledger.read(marker), name=ledger.storage.at(marker.object))
        if table.num_rows:
            yield Predictions(marker.unit, ledger.storage.at(marker.object), table)


def by_part(units: Iterable[Unit]) -> dict[tuple[str, Part], list[Unit]]:
    """Units by dataset and part, each list in order."""
    grouped: dict[tuple[str, Part], list[Unit]] = defaultdict(list)
    for unit in sorted(units):
        grouped[unit.dataset, unit.part].append(unit)
    return grouped


def joint_targets(clean: Iterable[Unit]) -> dict[str, list[str]]:
    """Per dataset, the targets that have seen every part that any target has seen."""
    seen: dict[str, dict[str, set[Part]]] = defaultdict(lambda: defaultdict(set))
    for unit in clean:
        seen[unit.dataset][unit.target].add(unit.part)
    return {
        dataset: sorted(target for target, parts in targets.items() if parts == set().union(*targets.values()))
        for dataset, targets in seen.items()
    }


def all_correct(clean: Mapping[str, Predictions], targets: Sequence[str]) -> np.ndarray:
    """Where every one of some targets is right when clean, (rows,) bool; nowhere if there are none of them.

    Where no target has seen every part, the joint denominator is then empty, rather than another one in each part.
    """
    if targets:
        return np.asarray(np.logical_and.reduce([clean[target].correct for target in targets]))
    return np.zeros(len(next(iter(clean.values())).correct), bool)


def is_itself(unit: Unit, sources: Mapping[str, set[str]], targets: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a target is the model that was attacked, or one of an ensemble: with or without a defense."""
    return targets[unit.target]["digest"] in sources.get(unit.source, ())


def networks(ledger: Ledger) -> tuple[dict[str, set[str]], dict[str, Mapping[str, Any]]]:
    """Of each source the digests of its weights, of an ensemble's several; of each target its identity.

    What another program attacked is known by what its user called it: the targets of that name or tag are it.
    """
    scored = {unit.target: unit for unit in ledger.units("transfer")}
    told = {marker.unit.target: marker.fact("target") for marker in ledger.markers(scored.values())}
    attacked = {unit.source: unit for unit in ledger.units("adversarial")}
    sources = {}
    for marker in ledger.markers(attacked.values()):
        source = marker.fact("source")
        sources[marker.unit.source] = {
            each["digest"] for each in source.get("ensemble", [source]) if "digest" in each
        } | {target["digest"] for unit, target in told.items() if _is_called(unit, target, source.get("told"))}
    return sources, told


def _is_called(unit: str, target: Mapping[str, Any], name: str | None) -> bool:
    return name is not None and (name == target.get("model") or slug(name) == unit.rpartition("-")[0])
