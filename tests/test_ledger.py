import json

import pytest

from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Ledger, Unit, fingerprint, named, parse
from pipeline.sample import Part
from pipeline.storage import Storage

PART = Part("shard-0001-of-x", 3, 5)
UNITS = [
    Unit("data-0", PART),
    Unit("data-0", PART, source="net-1", attack="mi-2"),
    Unit("data-0", PART, target="net-3"),
    Unit("data-0", PART, source="net-1", attack="mi-2", target="net-3"),
]


@pytest.fixture
def ledger(storage: Storage) -> Ledger:
    return Ledger(storage)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.kind)
def test_a_markers_name_says_what_it_stands_for(unit: Unit) -> None:
    assert parse(unit.marker) == unit


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
def test_other_names_stand_for_nothing(key: str) -> None:
    assert parse(key) is None


def test_kinds_follow_from_components() -> None:
    assert [unit.kind for unit in UNITS] == ["original", "adversarial", "clean", "transfer"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.kind)
def test_what_is_committed_is_read_back(ledger: Ledger, unit: Unit) -> None:
    marker = ledger.commit(unit, b"data", "tar", {"n": 3})
    assert ledger.marker(unit) == marker
    assert ledger.read(marker) == b"data"
    assert list(ledger.units(unit.kind)) == [unit]
    assert marker.facts == {"n": 3}


def test_the_first_commit_stands_and_the_second_is_an_orphan(ledger: Ledger) -> None:
    first = ledger.commit(UNITS[0], b"first", "tar", {})
    second = ledger.commit(UNITS[0], b"second", "tar", {})
    assert second == first
    assert ledger.read(second) == b"first"
    assert len(list(ledger.storage.list("shards"))) == 2
    assert len(list(ledger.units("original"))) == 1


def test_data_without_a_marker_is_not_data(ledger: Ledger) -> None:
    ledger.storage.put("shards/original/data-0/s/00000-of-00001-0123456789abcdef.tar", b"orphan")
    assert list(ledger.units("original")) == []
    with pytest.raises(MissingError):
        ledger.marker(UNITS[0])


def test_a_flipped_byte_is_noticed(ledger: Ledger) -> None:
    marker = ledger.commit(UNITS[0], b"data", "tar", {})
    ledger.storage.put(marker.object, b"dbta")
    with pytest.raises(IntegrityError, match="damaged"):
        ledger.read(marker)


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"{}", b'{"unit": 3}', b'{"unit": {"part": {}}}'])
def test_a_damaged_marker_is_an_integrity_error(ledger: Ledger, junk: bytes) -> None:
    ledger.storage.put(UNITS[0].marker, junk)
    with pytest.raises(IntegrityError, match="not a marker"):
        ledger.marker(UNITS[0])


def test_a_marker_under_another_name_is_an_integrity_error(ledger: Ledger) -> None:
    ledger.commit(UNITS[0], b"data", "tar", {})
    other = Unit("data-0", Part("shard-0001-of-x", 4, 5))
    ledger.storage.put(other.marker, ledger.storage.get(UNITS[0].marker))
    with pytest.raises(IntegrityError, match="this is the marker of"):
        ledger.marker(other)


def test_fingerprints_are_canonical() -> None:
    assert fingerprint({"a": 1, "b": [1.5, "x"]}) == fingerprint({"b": [1.5, "x"], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert named("gnp+mi / x", {}).startswith("gnp-mi-x-")
    assert named("gnp+mi", {}) != named("gnp-mi", {})


def test_plans_are_kept_once(ledger: Ledger) -> None:
    assert ledger.record_plan({"a": 1}) == ledger.record_plan({"a": 1})
    ledger.record_plan({"a": 2})
    assert sorted(json.dumps(ledger.plan(key)) for key in ledger.plans()) == ['{"a": 1}', '{"a": 2}']


@pytest.mark.parametrize("junk", [b"{", b"{}", b"[]", b'{"a": 3}'])
def test_a_plan_is_what_its_name_stands_for(ledger: Ledger, junk: bytes) -> None:
    key = f"plans/{ledger.record_plan({'a': 1})}.json"
    ledger.storage.put(key, junk)
    with pytest.raises(IntegrityError, match="not a plan"):
        ledger.plan(key)
