"""Fuzzed JSON records of a store (markers, plans, failures, runs, claims): all their readers read or refuse them."""

import copy
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from pipeline import storage
from pipeline.data.sample import Part
from pipeline.ledger import Failure, Ledger, Unit, finished_shards, leases
from tests.conftest import TRIED
from tests.fuzz.fuzzing import corrupt, fuzz_settings, only_gnp_errors, seeds

pytestmark = pytest.mark.timeout(300)

UNIT = Unit("data-0", Part("s", 0, 1), source="net-1", attack="mi-2")
RECORDS: dict[str, dict[str, Any]] = {
    UNIT.marker_key: {
        "unit": asdict(UNIT),
        "object": f"{UNIT.data_key}-0123456789abcdef.tar",
        "sha256": "0" * 64,
        "size_bytes": 3,
        "facts": {"n": 3, "rejected": [["a", "b"]]},
    },
    "plans/{}.json": {"dataset": "d", "shards": ["s"], "sources": ["n"], "attacks": ["a"], "targets": ["t"]},
    "failures/p/net/s/0-1.json": asdict(Failure("p", "net", "s", 0, 1, "tag", "s from net", "it broke", 3, "run")),
    "runs/other.json": {"plan": "p", "state": "running", "host": "h", "pid": 1, "items": 3, "seconds": 1.5},
    "claims/p/net/s/00000000.json": {"run": "other"},
    "finished/data-0/records/r/x.json": {"scopes": ["clean/data-0/net-1"], "shards": {"s": 3}},
}
HOSTILE_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**63, 2**70, -(2**100), 10**4000, 0.5, 1e308),
    *("", "x", "\ud800", "\0", "../../x", "\u202e", "9" * 10_000, "running", "other", f"{UNIT.data_key}-/../../../x"),
    *([], {}, [[]], {"a": {}}, [1, "a", None], {"part": {}}),
]
HOSTILE_JSON = [
    *(b"NaN", b"Infinity", b"-1e999", b"9" * 5000, b'"\\ud800"'),
    *(b"[" * 900 + b"]" * 900, b"[" * 200_000, b'{"a":' * 3000),
]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def corrupted_record(valid: dict[str, Any], rng: random.Random) -> bytes:
    """A record with up to three wrong fields under a right seal; some also with damaged JSON."""
    record = json.loads(json.dumps(valid))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        node = record
        while True:
            field = rng.choice(list(node))
            if not isinstance(node[field], dict) or not node[field] or rng.random() < 0.5:
                break
            node = node[field]
        edit = rng.randrange(4)
        if edit == 0:
            del node[field]
        elif edit == 1:
            node[rng.choice(("x", "", "unit", "seal", "run", "part"))] = copy.deepcopy(rng.choice(HOSTILE_VALUES))
        else:
            # A copy, as later edits may change it.
            node[field] = copy.deepcopy(rng.choice([*HOSTILE_VALUES, nested(rng.choice((50, 400)))]))
        if not node:
            break
    record.pop("seal", None)
    data = json.dumps({**record, "seal": storage.json_sha256(record)}).encode()
    chance = rng.random()
    if chance < 0.25:
        return corrupt(data, rng, [data])
    if chance < 0.35:
        return data.replace(b"3", rng.choice(HOSTILE_JSON), 1)
    if chance < 0.4:
        return rng.choice(
            (rng.choice(HOSTILE_JSON), data.decode().encode("utf-16"), b"\xef\xbb\xbf" + data, b"[]", b"null", b"")
        )
    return data


@fuzz_settings(2600)
@given(seed=seeds)
def test_a_corrupted_record_is_read_or_refused(ledger: Ledger, seed: int) -> None:
    rng = random.Random(seed)
    key, valid = rng.choice(list(RECORDS.items()))
    data = corrupted_record(valid, rng)
    if key.startswith("plans"):
        key = "plans/000000000000.json"
    path = Path(ledger.storage.url_of(key))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        for reader in record_readers(ledger, key):
            with only_gnp_errors("records"):
                reader()
            TRIED["records"] -= 1
        TRIED["records"] += 1
    finally:
        for stored in list(ledger.storage.list()):
            Path(ledger.storage.url_of(stored.key)).unlink()


def record_readers(ledger: Ledger, key: str) -> list[Callable[[], object]]:
    """Every function that reads the record at a key."""
    store = ledger.storage
    record: Callable[[], object] = lambda: store.get_record(key)  # noqa: E731
    if key == UNIT.marker_key:
        return [
            record,
            lambda: ledger.read_data(ledger.read_marker(UNIT)),
            lambda: list(ledger.read_markers(ledger.list_units("adversarial"))),
        ]
    if key.startswith("plans"):
        return [record, lambda: ledger.read_plan(key)]
    if key.startswith("finished"):
        index = finished_shards.read_index(store, "data-0")
        return [record, lambda: finished_shards.read_record(store, key), lambda: index.finished("clean/data-0/net-1")]
    if key.startswith("failures"):
        return [record, lambda: [failure.key for failure in ledger.list_failures()]]
    store.put_record("runs/own.json", {"plan": "p", "state": "running", "host": "h", "pid": 1}, if_absent=False)
    if key.startswith("runs"):
        store.put_record("claims/p/net/s/00000000.json", {"run": "other"})
    return [
        record,
        lambda: [
            (run.live, run.on_this_machine, leases.mark_failed_if_process_is_gone(store, run))
            for run in leases.list_runs(store, now=time.time())
        ],
        lambda: leases.claim(store, "p/net/s", "own"),
    ]
