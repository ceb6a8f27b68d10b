"""Digests of images, as batches hold them and as the store holds them."""

from pathlib import Path
from typing import Any

from pipeline.data import codec, parts
from pipeline.ledger import Ledger
from pipeline.storage import Storage

# What the fixture `filled_store` holds.
IMAGES = 30
ATTACKS = 2


def stored_digests(store: Path, kind: str = "adversarial") -> dict[tuple[str, str], str]:
    """(Key, attack) → digest of the pixels, read part by part."""
    ledger = Ledger(Storage(str(store)))
    digests = {}
    for marker in ledger.read_markers(ledger.list_units(kind)):
        images = parts.decode_tar(ledger.read_data(marker), name=marker.object)
        for key, pixels in zip(images.keys, images.pixels, strict=True):
            digests[key, marker.unit.attack] = codec.pixels_sha256(pixels)
    return digests


def read_digests(batches: Any) -> list[tuple[str, str, str]]:
    """(key, attack, digest of the pixels), in order."""
    return [
        (key, attack, codec.pixels_sha256(pixels))
        for batch in batches
        for key, attack, pixels in zip(batch["keys"], batch["attacks"], batch["images"], strict=True)
    ]


def all_stored(store: Path) -> list[tuple[str, str, str]]:
    return sorted((key, attack, digest) for (key, attack), digest in stored_digests(store).items())
