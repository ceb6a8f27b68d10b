"""Stored predictions, one file per unit: where a target was correct, and where an attack succeeded."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.sample import Part
from pipeline.errors import IntegrityError
from pipeline.ledger import Ledger, Marker, Unit, name_in_id, slug
from pipeline.results import schema


@dataclass(frozen=True)
class StoredPredictions:
    """One result file.

    Attributes:
        unit: The unit that it belongs to.
        where: Its address.
        table: One row per image.
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
        """Where the prediction is the label, (rows,) bool; an abstention is not correct."""
        return np.asarray((self.column("prediction") == self.column("label")) & ~self.column("abstained"))

    @property
    def fooled(self) -> np.ndarray:
        """Where the attack succeeded, (rows,) bool: untargeted, a wrong prediction; targeted, the target class."""
        target_class = self.table.column("target_class")
        reached = (self.column("prediction") == np.asarray(target_class.fill_null(-1))) & ~self.column("abstained")
        return np.where(np.asarray(target_class.is_null()), ~self.correct, reached)

    @property
    def attacked(self) -> np.ndarray:
        """Where an attack can succeed, (rows,) bool: not where the target class is the label itself."""
        target_class = self.table.column("target_class")
        return np.asarray(np.asarray(target_class.fill_null(-1)) != self.column("label"))

    def require_same_images(self, other: "StoredPredictions") -> None:
        """Checks that two files hold the same images in the same order.

        Raises:
            IntegrityError: They do not.
        """
        if not self.table.column("key").equals(other.table.column("key")):
            raise IntegrityError(f"{self.where}: holds other images than {other.where}; run verify")


def read_predictions(ledger: Ledger, units: Iterable[Unit]) -> Iterator[StoredPredictions]:
    """Reads the result files of units; skips empty ones, of parts whose images were all quarantined.

    Raises:
        IntegrityError: A file is damaged.
    """
    return predictions_from_markers(ledger, ledger.read_markers(units))


def predictions_from_markers(ledger: Ledger, markers: Iterable[Marker]) -> Iterator[StoredPredictions]:
    """Reads the result files of markers, as `read_predictions` does.

    Raises:
        IntegrityError: A file is damaged.
    """
    for marker in markers:
        table = schema.read_parquet(ledger.read_data(marker), name=ledger.storage.url_of(marker.object))
        if table.num_rows:
            yield StoredPredictions(marker.unit, ledger.storage.url_of(marker.object), table)


def group_by_part(units: Iterable[Unit]) -> dict[tuple[str, Part], list[Unit]]:
    """Units by dataset and part, each list in order."""
    grouped: dict[tuple[str, Part], list[Unit]] = defaultdict(list)
    for unit in sorted(units):
        grouped[unit.dataset, unit.part].append(unit)
    return grouped


def is_white_box(unit: Unit, sources: Mapping[str, set[str]], targets: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a target is the attacked model or a member of the attacked ensemble, with or without a defense.

    Args:
        unit: A transfer result.
        sources: The digests of each source's weights; see `read_model_identities`.
        targets: The identity of each target.
    """
    return targets[unit.target]["digest"] in sources.get(unit.source, ())


def read_model_identities(ledger: Ledger) -> tuple[dict[str, set[str]], dict[str, Mapping[str, Any]]]:
    """The digests of each source's weights, several for an ensemble; and the identity of each target.

    Of another program's images only the source's name is known, as its user gave it: the targets of that name or tag
    count as this source.
    """
    scored = {unit.target: unit for unit in ledger.list_units("transfer")}
    targets = {marker.unit.target: marker.fact("target") for marker in ledger.read_markers(scored.values())}
    attacked = {unit.source: unit for unit in ledger.list_units("adversarial")}
    sources = {}
    for marker in ledger.read_markers(attacked.values()):
        source = marker.fact("source")
        networks = source.get("ensemble", [source])
        digests = {network["digest"] for network in networks if "digest" in network}
        named = {target["digest"] for id_, target in targets.items() if _is_named(id_, target, source.get("told"))}
        sources[marker.unit.source] = digests | named
    return sources, targets


def _is_named(target_id: str, target: Mapping[str, Any], name: str | None) -> bool:
    """Whether a name is that of a target, or its model's tag."""
    return name is not None and (name == target.get("model") or slug(name) == name_in_id(target_id))
