"""Checks of one part: the stored original, the adversarial images made from it, and the predictions on both."""

import json
from fractions import Fraction

import torch
from torch import Tensor

from pipeline.data import codec, parts, shards
from pipeline.data.parts import Images
from pipeline.ledger import Ledger, Marker, Unit, make_id
from pipeline.results import schema


class CheckError(Exception):
    """A check that failed; the message says how."""


class PartVerifier:
    """Checks the units of one part, which must come in their order.

    In that order the original comes first, and every set of images before the predictions on it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._original: Images | None = None
        # The images that the next predictions are on.
        self._current: tuple[Marker, Images] | None = None

    def check(self, unit: Unit) -> int:
        """Reads a unit's object and checks it against its marker and the part's other objects.

        Returns:
            The number of adversarial images that were compared with their originals.

        Raises:
            CheckError: A check failed.
            GnpError: The marker or the object cannot be read.
        """
        marker = self._ledger.read_marker(unit)
        data = self._ledger.read_data(marker)
        if unit.target:
            self._check_predictions(marker, data)
            return 0
        self._current = None
        images = parts.decode_tar(data, name=marker.object)
        if codec.pixels_sha256(images.pixels) != marker.fact("pixels_sha256"):
            raise CheckError("its pixels hash to something else than the marker says")
        if unit.attack:
            self._check_adversarial(marker, data, images)
        else:
            _check_original(marker, images)
            self._original = images
        self._current = (marker, images)
        return len(images.keys) if unit.attack else 0

    def _check_adversarial(self, marker: Marker, data: bytes, images: Images) -> None:
        original = self._original
        if original is None:
            raise CheckError("its original part is missing or damaged, so that epsilon cannot be checked")
        if images.keys != original.keys or not torch.equal(images.labels, original.labels):
            raise CheckError("its keys or labels are not those of its original part")
        attack = marker.fact("attack")
        if make_id(attack["name"], attack) != marker.unit.attack:
            raise CheckError("the attack that its marker describes is not the one that its name stands for")
        _require_count(marker, "n", len(images.keys))
        if not len(images.keys):
            return
        if images.pixels.shape != original.pixels.shape:
            raise CheckError(
                f"its images are {tuple(images.pixels.shape[1:])}, the originals {tuple(original.pixels.shape[1:])}"
            )
        linf, squared_l2 = _distances(images.pixels, original.pixels)
        _check_budget(attack, images.keys, linf, squared_l2)
        records = shards.read_records(data, name=marker.object)
        for record, largest, squares in zip(records, linf, squared_l2, strict=True):
            stored = json.loads(record["json"])
            linf_differs = abs(stored["linf"] * 255 - largest) > 1e-6
            if linf_differs or abs((stored["l2"] * 255) ** 2 - squares) > 1e-6 * (1 + squares):
                raise CheckError(f"image {record['__key__']!r} says another distance than its pixels")

    def _check_predictions(self, marker: Marker, data: bytes) -> None:
        unit = marker.unit
        scored, images = self._current or (None, None)
        if scored is None or images is None or (scored.unit.source, scored.unit.attack) != (unit.source, unit.attack):
            raise CheckError("the images that it scores are missing or damaged")
        if marker.fact("scored_sha256") != scored.sha256:
            raise CheckError("it scores other bytes than those that are stored")
        table = schema.read_parquet(data, name=marker.object)
        _require_count(marker, "n", table.num_rows)
        expected = {
            "key": list(images.keys),
            "label": images.labels.tolist(),
            "pixels_sha256": [codec.pixels_sha256(pixels) for pixels in images.pixels],
        }
        if unit.attack:
            expected["target_class"] = [None if class_ < 0 else class_ for class_ in images.target_classes.tolist()]
        for column, values in expected.items():
            if table.column(column).to_pylist() != values:
                raise CheckError(f"its column {column} does not match the stored images")
        if table.num_rows:
            _check_constant_columns(marker, table)


def _distances(adversarial: Tensor, original: Tensor) -> tuple[list[int], list[int]]:
    """Of each image, the largest change and the sum of squared changes, in whole levels of 1/255.

    Args:
        adversarial: (N, 3, H, W) uint8.
        original: (N, 3, H, W) uint8.
    """
    perturbation = adversarial.to(torch.int32) - original.to(torch.int32)
    linf = perturbation.abs().amax(dim=(1, 2, 3))
    squared_l2 = (perturbation.long() ** 2).sum(dim=(1, 2, 3))
    return linf.tolist(), squared_l2.tolist()


def _check_budget(attack: dict[str, str], keys: tuple[str, ...], linf: list[int], squared_l2: list[int]) -> None:
    epsilon = Fraction(attack["epsilon"])
    if attack["norm"] == "linf":
        distances = linf
        budget = codec.levels(epsilon)
    else:
        distances = squared_l2
        budget = codec.squared_levels(epsilon)
    outside = [key for key, distance in zip(keys, distances, strict=True) if distance > budget]
    if outside:
        raise CheckError(f"{len(outside)} images lie outside epsilon = {attack['epsilon']}, the first {outside[0]!r}")


def _check_constant_columns(marker: Marker, table: schema.Table) -> None:
    """Checks the columns with one value in all rows against the unit's identities."""
    unit, target = marker.unit, marker.fact("target")
    expected = {"dataset": unit.dataset, "shard": unit.part.shard, "part": unit.part.index, "target_id": unit.target}
    expected |= {"policy": target["policy"], "weights_sha256": target["digest"]}
    if unit.attack:
        expected |= {"source_id": unit.source, "attack_id": unit.attack}
    for column, value in expected.items():
        if table.column(column).unique().to_pylist() != [value]:
            raise CheckError(f"its column {column} is not {value!r} throughout")
    if make_id(table.column("target")[0].as_py(), target) != unit.target:
        raise CheckError("the target that its marker describes is not the one that its name stands for")


def _check_original(marker: Marker, images: Images) -> None:
    _require_count(marker, "n_ok", len(images.keys))
    total, usable, quarantined = (marker.fact(name) for name in ("n_in", "n_ok", "n_quarantined"))
    if total != usable + quarantined or quarantined != len(marker.fact("quarantined")):
        raise CheckError(f"{total} images in, but {usable} kept and {quarantined} quarantined")


def _require_count(marker: Marker, fact: str, count: int) -> None:
    if marker.fact(fact) != count:
        raise CheckError(f"holds {count} images, its marker says {marker.fact(fact)}")
