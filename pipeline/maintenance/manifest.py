"""The manifest of a version: every committed object and every file of the version, with its sha256.

    versions/ID/manifest.json
        version, layout, complete, missing_shards, missing_results, images, rows, plans
        objects     [{kind, unit, object, sha256, size_bytes, n}, …]    committed objects, in the order of their units
        files       [{name, sha256, size_bytes}, …]                     files of the version, relative to its folder

ID is a fingerprint of the layout, the objects and the plans, so the same store gives the same version.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.ledger import Marker, fingerprint, unit_from_record

# Raised whenever the same store is to give other files, so that they become another version.
LAYOUT = 2


@dataclass(frozen=True)
class Manifest:
    """A parsed manifest.

    Attributes:
        version: Identity of the version.
        layout: The layout of its files.
        plans: Keys of the plans that it covers.
        objects: Entries of committed objects, as JSON; `markers` checks them.
        files: File name, relative to the version's folder → sha256.
    """

    version: str
    layout: int
    plans: Sequence[str]
    objects: Sequence[Mapping[str, Any]]
    files: Mapping[str, str]

    def object_keys(self) -> set[str]:
        """The keys of all committed objects.

        Raises:
            ValueError: An entry has no key.
        """
        try:
            return {str(entry["object"]) for entry in self.objects}
        except (KeyError, TypeError) as error:
            raise ValueError(f"an object's entry has no key: {error}") from error

    def markers(self) -> list[Marker]:
        """The committed objects as markers with one fact: `n`, the number of images or rows.

        Raises:
            ValueError: An entry is not an object's.
        """
        try:
            return [_marker(entry) for entry in self.objects]
        except (KeyError, TypeError) as error:
            raise ValueError(f"an object's entry cannot be read: {error}") from error


def key(version: str) -> str:
    """The key of a version's manifest."""
    return f"versions/{version}/manifest.json"


def version_id(markers: Sequence[Marker], plans: Sequence[str], *, layout: int = LAYOUT) -> str:
    """The identity of the version that holds these objects and covers these plans."""
    objects = [[marker.object, marker.sha256] for marker in markers]
    return fingerprint({"layout": layout, "objects": objects, "plans": plans})


def object_entry(marker: Marker) -> dict[str, Any]:
    """A committed object as JSON; `Manifest.markers` reads it."""
    return {
        "kind": marker.unit.kind,
        "unit": asdict(marker.unit),
        "object": marker.object,
        "sha256": marker.sha256,
        "size_bytes": marker.size_bytes,
        "n": marker.fact("n"),
    }


def parse(data: bytes) -> Manifest:
    """Reads a manifest.

    Raises:
        ValueError: The bytes are not a manifest.
    """
    try:
        fields = json.loads(data)
        return Manifest(
            version=fields["version"],
            layout=fields["layout"],
            plans=fields["plans"],
            objects=list(fields["objects"]),
            files={str(file["name"]): str(file["sha256"]) for file in fields["files"]},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _marker(entry: Mapping[str, Any]) -> Marker:
    unit = unit_from_record(entry["unit"])
    if not str(entry["object"]).startswith(f"{unit.data_key}-") or int(entry["n"]) < 0:
        raise ValueError(f"{entry['object']} is not the data of {unit.marker_key}")
    return Marker(unit, entry["object"], entry["sha256"], int(entry["size_bytes"]), {"n": int(entry["n"])})
