"""Hashes, and records: small JSON objects that carry their own hash, under `seal`."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def sha256(data: bytes) -> str:
    """Hex sha256 of bytes, as markers and object names carry it."""
    return hashlib.sha256(data).hexdigest()


def json_sha256(value: Mapping[str, Any]) -> str:
    """Hex sha256 of canonical JSON: sorted keys, no blanks."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def encode_record(record: Mapping[str, Any]) -> bytes:
    """The stored form of a record."""
    sealed = {**record, "seal": json_sha256(record)}
    return json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False).encode()


def decode_record(data: bytes) -> dict[str, Any]:
    """The record that `encode_record` wrote.

    Raises:
        ValueError: The bytes are not a record, or were changed; the message is the reason.
    """
    try:
        record = json.loads(data)
        seal = record.pop("seal")
        if seal == json_sha256(record):
            return dict(record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    raise ValueError("its content does not match its hash (`seal`)")
