"""What a run knows of failures without Ray: items that earlier runs gave up, workers that end beside each other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.data.sample import Part, ShardFile
from pipeline.engine.actors import Actors, _Calls
from pipeline.engine.run import _is_listed
from pipeline.engine.state import Pool, WorkerRecord
from pipeline.engine.worker import ItemResult
from pipeline.ledger import Failure, Ledger
from pipeline.plan.outline import Item, Outline, ShardSelection, all_scopes, part_units
from pipeline.plan.pools import WorkerShape
from tests.stages.runs import new_ledger

RECORD = {"dataset": "data", "sources": {"net": {}}, "attacks": {"i": {}}, "targets": {"net": {}}}
SHARD = ShardSelection(ShardFile("in/s.tar", "s", 1, "v"), None)
OUTLINE = Outline(RECORD, (SHARD,))


def commit_parts(ledger: Ledger, *indices: int) -> None:
    for index in indices:
        for unit in part_units(OUTLINE, "net", Part("s", index, 4)):
            ledger.commit(unit, b"", "tar", {})


def test_a_piece_that_was_given_up_is_not_tried_again_as_part_of_a_larger_item(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "store")
    given_up = Failure("plan", "net", "s", 3, 4, "v", "s parts 3+4n from net", "it kills workers", 3, "run")
    whole = Item(SHARD, "net")

    def is_listed(item: Item) -> bool:
        return _is_listed(OUTLINE, item, [given_up], ledger.list_committed(all_scopes(OUTLINE)))

    assert not is_listed(whole)
    commit_parts(ledger, 0, 1)
    assert not is_listed(whole), "part 2 was not tried"
    assert is_listed(replace(whole, offset=1, stride=2)), "all but part 3 is there"
    commit_parts(ledger, 2)
    assert is_listed(whole)


def test_a_worker_that_another_s_end_has_ended_gives_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = WorkerRecord("generator", 0.0), WorkerRecord("generator", 0.0)
    actors = Actors.__new__(Actors)
    actors._calls = {first: _Calls(None, "one"), second: _Calls(None, "two")}
    for worker in (first, second):
        worker.placed("n", 0.0)
        worker.started(0.0)

    def wait(futures: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        return futures, []

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda _: ItemResult("done"))
    seen = []
    for worker, _ in actors.wait(0.0):
        seen.append(worker)
        del actors._calls[second]
    assert seen == [first]


def test_a_pool_s_items_are_those_that_wait_and_those_in_hand() -> None:
    items = [Item(SHARD, "net", offset, 4) for offset in range(4)]
    worker = WorkerRecord("generator", 0.0)
    worker.placed("n", 0.0)
    worker.started(0.0)
    worker.assigned(items[0], items[1], attempt=1, now=0.0)
    pool = Pool("generator", WorkerShape(1, 0, 1), 0.0, [worker])
    pool.queue.extend(items[2:])
    assert sorted(pool.items, key=lambda item: item.offset) == items
