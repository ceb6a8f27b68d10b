"""Which images could not be used, and why."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.ledger.markers import Ledger


@dataclass(frozen=True)
class QuarantinedImage:
    """One image that could not be used.

    Attributes:
        dataset: Identity of the prepared images.
        shard: Name of the input shard.
        key: Key of the sample.
        reason: Why, in one line.
    """

    dataset: str
    shard: str
    key: str
    reason: str


def list_quarantined(ledger: Ledger) -> Iterator[QuarantinedImage]:
    """Every image that could not be used, from the markers of original parts."""
    for marker in ledger.read_markers(sorted(ledger.list_units("original"))):
        for row in marker.fact("quarantined"):
            yield QuarantinedImage(marker.unit.dataset, marker.unit.part.shard, row["key"], row["reason"])
