"""Commits and markers."""

import json
from dataclasses import replace

import pytest

from pipeline.data.sample import Part
from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Ledger, Unit
from pipeline.storage import Storage
from tests.ledger.units import PART, UNITS


@pytest.fixture
def ledger(storage: Storage) -> Ledger:
    return Ledger(storage)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.kind)
def test_committed_data_is_read_back(ledger: Ledger, unit: Unit) -> None:
    marker = ledger.commit(unit, b"data", "tar", {"n": 3})
    assert ledger.read_marker(unit) == marker
    assert ledger.read_data(marker) == b"data"
    assert list(ledger.list_units(unit.kind)) == [unit]
    assert marker.facts == {"n": 3}


def test_the_first_commit_stands_and_the_second_is_an_orphan(ledger: Ledger) -> None:
    first = ledger.commit(UNITS[0], b"first", "tar", {})
    second = ledger.commit(UNITS[0], b"second", "tar", {})
    assert second == first
    assert ledger.read_data(second) == b"first"
    assert len(list(ledger.storage.list("shards"))) == 2
    assert len(list(ledger.list_units("original"))) == 1


def test_data_without_a_marker_is_not_committed(ledger: Ledger) -> None:
    ledger.storage.put("shards/original/data-0/s/00000-of-00001-0123456789abcdef.tar", b"orphan")
    assert list(ledger.list_units("original")) == []
    with pytest.raises(MissingError):
        ledger.read_marker(UNITS[0])


def test_a_flipped_byte_is_detected(ledger: Ledger) -> None:
    marker = ledger.commit(UNITS[0], b"data", "tar", {})
    ledger.storage.put(marker.object, b"dbta")
    with pytest.raises(IntegrityError, match="damaged"):
        ledger.read_data(marker)


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"{}", b'{"unit": 3}', b'{"unit": {"part": {}}}'])
def test_a_damaged_marker_is_an_integrity_error(ledger: Ledger, junk: bytes) -> None:
    ledger.storage.put(UNITS[0].marker_key, junk)
    with pytest.raises(IntegrityError, match="not a record"):
        ledger.read_marker(UNITS[0])


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"unit": 3},
        {"unit": {"part": {}}},
        {"unit": {"dataset": [], "part": {"shard": "s", "index": "0", "count": 1}}},
    ],
)
def test_a_record_that_is_not_a_marker_is_an_integrity_error(ledger: Ledger, record: dict[str, object]) -> None:
    ledger.storage.put_record(UNITS[0].marker_key, record)
    with pytest.raises(IntegrityError, match="not a marker"):
        ledger.read_marker(UNITS[0])


@pytest.mark.parametrize("wrong", [{"sha256": None}, {"sha256": "0"}, {"object": f"{UNITS[0].data_key}-/../../x"}])
def test_a_marker_with_a_wrong_hash_or_object_is_an_integrity_error(ledger: Ledger, wrong: dict[str, object]) -> None:
    ledger.commit(UNITS[0], b"data", "tar", {})
    record = ledger.storage.get_record(UNITS[0].marker_key)
    ledger.storage.put_record(UNITS[0].marker_key, {**record, **wrong}, if_absent=False)
    with pytest.raises(IntegrityError, match="not a marker"):
        ledger.read_marker(UNITS[0])


def test_any_flipped_bit_of_a_marker_is_an_integrity_error(ledger: Ledger) -> None:
    ledger.commit(UNITS[0], b"data", "tar", {"n": 300})
    whole = ledger.storage.get(UNITS[0].marker_key)
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        try:
            same = json.loads(flipped) == json.loads(whole)
        except ValueError:
            same = False
        ledger.storage.put(UNITS[0].marker_key, bytes(flipped))
        if not same:  # a blank that became another blank is not damage
            with pytest.raises(IntegrityError):
                ledger.read_marker(UNITS[0])


def test_a_marker_under_another_key_is_an_integrity_error(ledger: Ledger) -> None:
    ledger.commit(UNITS[0], b"data", "tar", {})
    other = Unit("data-0", Part("shard-0001-of-x", 4, 5))
    ledger.storage.put(other.marker_key, ledger.storage.get(UNITS[0].marker_key))
    with pytest.raises(IntegrityError, match="this is the marker of"):
        ledger.read_marker(other)


def test_committed_parts_are_listed_by_scope_shard_and_part(ledger: Ledger) -> None:
    for unit in UNITS:
        ledger.commit(unit, b"data", "tar", {})
    committed = ledger.list_committed([unit.scope for unit in UNITS])
    assert all(unit in committed for unit in UNITS)
    assert committed.part_count(PART.shard) == 5
    assert committed.part_count("other") is None
    assert committed.part_bits(UNITS[1].scope, PART.shard) == 1 << 3
    assert replace(UNITS[1], part=replace(PART, index=4)) not in committed
    assert ledger.list_committed([UNITS[0].scope], shard="other").part_count(PART.shard) is None
    assert ledger.list_committed([UNITS[0].scope], shard=PART.shard).part_count(PART.shard) == 5
