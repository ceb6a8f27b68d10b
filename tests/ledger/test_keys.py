"""Keys of units, and identities."""

import pytest

from pipeline.ledger import Unit, fingerprint, make_id, parse_marker_key
from tests.ledger.units import UNITS


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.kind)
def test_a_marker_key_is_parsed_to_its_unit(unit: Unit) -> None:
    assert parse_marker_key(unit.marker_key) == unit


@pytest.mark.parametrize(
    "key",
    [
        "shards/original/data-0/s/00003-of-00005.json",
        "markers/original/data-0/s/00003-of-00005",
        "markers/other/data-0/s/00003-of-00005.json",
        "markers/clean/data-0/s/00003-of-00005.json",
        "markers/original/data-0/s/3-of-5.json",
        "markers/original",
    ],
)
def test_other_keys_are_not_parsed(key: str) -> None:
    assert parse_marker_key(key) is None


def test_the_kind_follows_from_the_identities() -> None:
    assert [unit.kind for unit in UNITS] == ["original", "adversarial", "clean", "transfer"]


def test_fingerprints_are_canonical() -> None:
    assert fingerprint({"a": 1, "b": [1.5, "x"]}) == fingerprint({"b": [1.5, "x"], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert make_id("gnp+mi / x", {}).startswith("gnp-mi-x-")
    assert make_id("gnp+mi", {}) != make_id("gnp-mi", {})
