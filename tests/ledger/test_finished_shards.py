"""The index of finished shards: what is listed with it is what is listed without it."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.data.sample import Part
from pipeline.ledger import Ledger, Unit, finished_shards
from pipeline.ledger.finished_shards import add_to_index
from pipeline.maintenance.verify_records import check_records
from pipeline.storage import Storage
from tests.ledger.units import UNITS

SHARDS = ("s", "s0", "s01", "s1", "s10", "t-1", "t-10", "tä", "u")
PARTS = 3
SCOPES = [unit.scope for unit in UNITS]


@pytest.fixture
def ledger(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """An empty store, whose records are worth it from 2 shards on."""
    monkeypatch.setattr(finished_shards, "_BLOCK_MARKERS", 2 * PARTS * len(SCOPES))
    return Ledger(storage)


def units(*shards: str) -> Iterator[Unit]:
    for shard in shards:
        for index in range(PARTS):
            yield from (replace(unit, part=Part(shard, index, PARTS)) for unit in UNITS)


def put_markers(ledger: Ledger, *committed: Unit) -> None:
    for unit in committed:
        ledger.storage.put(unit.marker_key, b"{}")


def write_index(ledger: Ledger) -> list[str]:
    """Adds what is finished to the index; returns the keys of all its records."""
    add_to_index(ledger.storage, ledger.list_committed(SCOPES, shards=SHARDS), SHARDS)
    return records(ledger)


def records(ledger: Ledger) -> list[str]:
    return [stored.key for stored in ledger.storage.list("finished") if "/records/" in stored.key]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_listed_is_the_same_with_an_index(ledger: Ledger, seed: int) -> None:
    rng = random.Random(seed)
    waiting = [unit for shard in SHARDS for unit in units(shard)]
    missing = set(rng.sample(waiting, rng.choice((0, 1, 5)))) if seed else set()
    rng.shuffle(waiting)
    third = len(waiting) // 3
    for start in range(0, 3 * third, third):
        put_markers(ledger, *(unit for unit in waiting[start : start + third] if unit not in missing))
        write_index(ledger)
        with_index = ledger.list_committed(SCOPES, shards=SHARDS)
        assert with_index == ledger.list_committed(SCOPES)
    if not missing:
        assert len(write_index(ledger)) == 4
        index = finished_shards.read_index(ledger.storage, UNITS[0].dataset)
        assert all(len(index.finished(scope)) == 8 for scope in SCOPES)


def test_markers_of_indexed_shards_are_not_listed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    put_markers(ledger, *units(*SHARDS))
    write_index(ledger)
    listed: list[str] = []
    real = Storage.list_neighbours

    def list_neighbours(storage: Storage, prefix: str, folders: list[str]) -> object:
        listed.extend(folders)
        return real(storage, prefix, folders)

    monkeypatch.setattr(Storage, "list_neighbours", list_neighbours)
    ledger.list_committed(SCOPES, shards=SHARDS)
    assert set(listed) == {"u"}, "the ninth shard is not worth a record of its own"


def test_shards_that_stores_list_in_different_orders_are_not_indexed(ledger: Ledger) -> None:
    shards = ("s", "s-1", "t", "u")  # by name; by key "s-1/" precedes "s/"
    put_markers(ledger, *units(*shards))
    add_to_index(ledger.storage, ledger.list_committed(SCOPES, shards=shards), shards)
    assert not records(ledger)


def test_another_attack_is_listed_whole(ledger: Ledger) -> None:
    put_markers(ledger, *units("s", "s0"))
    assert write_index(ledger)
    other = [replace(unit, attack="other-4") for unit in units("s") if unit.attack]
    put_markers(ledger, *other)
    committed = ledger.list_committed([*SCOPES, other[0].scope], shards=SHARDS)
    assert committed.part_bits(other[0].scope, "s") == 0b111
    assert committed.part_bits(other[0].scope, "s0") == 0


def test_revoking_a_part_voids_the_index_also_what_is_written_to_it_later(ledger: Ledger) -> None:
    put_markers(ledger, *units("s", "s0", "s01", "s1"))
    seen = ledger.list_committed(SCOPES, shards=SHARDS)
    assert len(write_index(ledger)) == 2
    ledger.revoke(UNITS[0].dataset, [Part("s", 1, PARTS)])
    assert not records(ledger)
    add_to_index(ledger.storage, seen, SHARDS)  # by a run that was paused meanwhile
    assert records(ledger)
    assert ledger.list_committed(SCOPES, shards=SHARDS).part_bits(SCOPES[0], "s") == 0b101
    assert len(write_index(ledger)) == 3, "s01 and s1 are indexed again"


def test_a_damaged_record_is_not_believed(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    put_markers(ledger, *units("s", "s0"))
    (key,) = write_index(ledger)
    record = ledger.storage.get_record(key)
    ledger.storage.put_record(key, record | {"shards": {"s": PARTS, "u": PARTS}}, if_absent=False)
    assert ledger.list_committed(SCOPES, shards=SHARDS).part_count("u") is None
    assert "not a record of finished shards; remove it" in caplog.text
    ledger.storage.put(key, b"{}")
    write_index(ledger)
    assert ledger.storage.get_record(key) == record, "it is replaced"


def test_verify_reports_records_that_are_damaged_or_not_true(ledger: Ledger) -> None:
    put_markers(ledger, *units("s", "s0"))
    (key,) = write_index(ledger)
    assert not list(check_records(ledger, set()))
    ledger.storage.delete([next(units("s0")).marker_key])
    (problem,) = check_records(ledger, set())
    assert problem.address.endswith(key)
    assert problem.message == "says that shards are finished which lack parts; remove it"
    ledger.storage.put(key, b"{}")
    (problem,) = check_records(ledger, set())
    assert "not a record" in problem.message
