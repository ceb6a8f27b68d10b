"""Finalized versions as readers use them: the latest one, and the committed objects that one lists.

A manifest is one object, where reading the markers themselves would be one request per part.
"""

import json

from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Ledger, Marker, Unit
from pipeline.maintenance import manifest


def markers(ledger: Ledger, version: str) -> dict[Unit, Marker]:
    """The committed objects of a finalized version; their only fact is `n`, the number of images or rows.

    Args:
        ledger: The store.
        version: The version's id, or `latest`.

    Raises:
        MissingError: There is no such version.
        IntegrityError: Its manifest is damaged.
    """
    version = latest_id(ledger) if version == "latest" else version
    storage, key = ledger.storage, manifest.key(version)
    try:
        parsed = manifest.parse(storage.get(key))
        listed = parsed.markers()
        if manifest.version_id(listed, parsed.plans, layout=parsed.layout) != version:
            raise ValueError("its objects are not those that its id stands for")
    except MissingError as error:
        raise MissingError(
            f"{storage.url}: no version {version!r} is finalized here; run finalize, or name one of versions/"
        ) from error
    except ValueError as error:
        raise IntegrityError(f"{storage.url_of(key)}: not a manifest ({error}); run finalize again") from error
    return {marker.unit: marker for marker in listed}


def latest_id(ledger: Ledger) -> str:
    """The id of the store's latest version.

    Raises:
        MissingError: No version is finalized.
        IntegrityError: `latest.json` is damaged.
    """
    storage = ledger.storage
    try:
        return str(json.loads(storage.get("latest.json"))["version"])
    except MissingError as error:
        raise MissingError(f"{storage.url}: no version is finalized here; run finalize") from error
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{storage.url_of('latest.json')}: names no version; run finalize again") from error
