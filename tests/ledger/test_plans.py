"""Recorded plans and failures."""

import json

import pytest

from pipeline.errors import IntegrityError
from pipeline.ledger import Failure, Ledger
from pipeline.storage import Storage


@pytest.fixture
def ledger(storage: Storage) -> Ledger:
    return Ledger(storage)


def test_equal_plans_are_recorded_once(ledger: Ledger) -> None:
    assert ledger.record_plan({"a": 1}) == ledger.record_plan({"a": 1})
    ledger.record_plan({"a": 2})
    assert sorted(json.dumps(ledger.read_plan(key)) for key in ledger.plan_keys()) == ['{"a": 1}', '{"a": 2}']


@pytest.mark.parametrize("junk", [b"{", b"{}", b"[]", b'{"a": 3}'])
def test_a_plan_that_its_key_does_not_match_is_an_integrity_error(ledger: Ledger, junk: bytes) -> None:
    key = f"plans/{ledger.record_plan({'a': 1})}.json"
    ledger.storage.put(key, junk)
    with pytest.raises(IntegrityError, match="not a record"):
        ledger.read_plan(key)
    ledger.storage.put_record(key, {"a": 3}, if_absent=False)
    with pytest.raises(IntegrityError, match="not the plan that its name stands for"):
        ledger.read_plan(key)


def test_failures_are_listed_by_plan_and_removed(ledger: Ledger) -> None:
    failures = [Failure(plan, "net-1", "s", 0, 1, "tag", "s from net-1", "it broke", 3, "run") for plan in ("a", "b")]
    for failure in failures:
        ledger.record_failure(failure)
        ledger.record_failure(failure)
    assert ledger.list_failures() == failures
    assert ledger.list_failures("b") == failures[1:]
    ledger.remove_failures(failures[:1])
    assert ledger.list_failures() == failures[1:]
