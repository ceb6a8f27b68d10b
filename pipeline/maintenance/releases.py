"""What a finalized version holds, read off its manifest: one object instead of a marker for each part."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.data.sample import Part
from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Ledger, Marker, Unit, fingerprint


def objects(ledger: Ledger, version: str) -> dict[Unit, Marker]:
    """What a finalized version holds: its commits, each with the fact `n`, its images or rows, alone.

    Args:
        ledger: The store.
        version: Its id, or `latest`.

    Raises:
        MissingError: There is no such version.
        IntegrityError: Its manifest is damaged.
    """
    version = latest(ledger) if version == "latest" else version
    storage, key = ledger.storage, f"versions/{version}/manifest.json"
    try:
        manifest = json.loads(storage.get(key))
        found = [_listed(entry) for entry in manifest["objects"]]
        listed = [[marker.object, marker.sha256] for marker in found]
        layout, plans = manifest["layout"], manifest["plans"]
        if fingerprint({"layout": layout, "objects": listed, "plans": plans}) != version:
            raise ValueError("its objects are not those that its id stands for")
    except MissingError as error:
        raise MissingError(
            f"{storage.url}: no version {version!r} is finalized here; run finalize, or name one of versions/"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{storage.at(key)}: not a manifest ({error}); run finalize again") from error
    return {marker.unit: marker for marker in found}


def latest(ledger: Ledger) -> str:
    """The id of the store's latest version.

    Raises:
        MissingError: None is finalized.
        IntegrityError: What names it is damaged.
    """
    storage = ledger.storage
    try:
        return str(json.loads(storage.get("latest.json"))["version"])
    except MissingError as error:
        raise MissingError(f"{storage.url}: no version is finalized here; run finalize") from error
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{storage.at('latest.json')}: names no version; run finalize again") from error


def _listed(entry: Mapping[str, Any]) -> Marker:
    """An entry of a manifest as the commit that it lists."""
    own = entry["unit"]
    unit = Unit(**{**own, "part": Part(**own["part"])})
    if not str(entry["object"]).startswith(f"{unit.data}-") or int(entry["n"]) < 0:
        raise ValueError(f"{entry['object']} is not what {unit.marker} stands for")
    return Marker(unit, entry["object"], entry["sha256"], int(entry["size_bytes"]), {"n": int(entry["n"])})
