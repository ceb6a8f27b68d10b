import json
from dataclasses import replace

import pytest

from pipeline.data.sample import Part
from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Failure, Ledger, Unit, fingerprint, named, parse
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
    with pytest.raises(IntegrityError, match="not a record"):
        ledger.marker(UNITS[0])


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"unit": 3},
        {"unit": {"part": {}}},
        {"unit": {"dataset": [], "part": {"shard": "s", "index": "0", "count": 1}}},
    ],
)
def test_a_record_that_is_no_marker_is_an_integrity_error(ledger: Ledger, record: dict[str, object]) -> None:
    ledger.storage.put_record(UNITS[0].marker, record)
    with pytest.raises(IntegrityError, match="not a marker"):
        ledger.marker(UNITS[0])


@pytest.mark.parametrize("wrong", [{"sha256": None}, {"sha256": "0"}, {"object": f"{UNITS[0].data}-/../../x"}])
def test_a_marker_that_names_no_data_to_be_verified_is_an_integrity_error(
    ledger: Ledger, wrong: dict[str, object]
) -> None:
    ledger.commit(UNITS[0], b"data", "tar", {})
    record = ledger.storage.record(UNITS[0].marker)
    ledger.storage.put_record(UNITS[0].marker, {**record, **wrong}, once=False)
    with pytest.raises(IntegrityError, match="not a marker"):
        ledger.marker(UNITS[0])


def test_a_marker_with_a_flipped_bit_is_an_integrity_error_wherever_it_is(ledger: Ledger) -> None:
    ledger.commit(UNITS[0], b"data", "tar", {"n": 300})
    whole = ledger.storage.get(UNITS[0].marker)
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        try:
            same = json.loads(flipped) == json.loads(whole)
        except ValueError:
            same = False
        ledger.storage.put(UNITS[0].marker, bytes(flipped))
        if not same:  # a blank that became another blank is no damage
            with pytest.raises(IntegrityError):
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
    with pytest.raises(IntegrityError, match="not a record"):
        ledger.plan(key)
    ledger.storage.put_record(key, {"a": 3}, once=False)
    with pytest.raises(IntegrityError, match="not the plan that its name stands for"):
        ledger.plan(key)


def test_what_stands_is_known_by_scope_shard_and_part(ledger: Ledger) -> None:
    for unit in UNITS:
        ledger.commit(unit, b"data", "tar", {})
    committed = ledger.committed([unit.scope for unit in UNITS])
    assert all(unit in committed for unit in UNITS)
    assert committed.count(PART.shard) == 5
    assert committed.count("other") is None
    assert committed.bits(UNITS[1].scope, PART.shard) == 1 << 3
    assert replace(UNITS[1], part=replace(PART, index=4)) not in committed
    assert ledger.committed([UNITS[0].scope], shard="other").count(PART.shard) is None
    assert ledger.committed([UNITS[0].scope], shard=PART.shard).count(PART.shard) == 5


def test_failures_are_listed_by_plan_and_forgiven(ledger: Ledger) -> None:
    failures = [Failure(plan, "net-1", "s", 0, 1, "tag", "s from net-1", "it broke", 3, "run") for plan in ("a", "b")]
    for failure in failures:
        ledger.fail(failure)
        ledger.fail(failure)
    assert ledger.failures() == failures
    assert ledger.failures("b") == failures[1:]
    ledger.forgive(failures[:1])
    assert ledger.failures() == failures[1:]
