"""A run without Ray: what it decides before it starts workers."""

from pathlib import Path

import pytest

from pipeline.data.sample import Part, ShardFile
from pipeline.engine import run
from pipeline.errors import Interrupted
from pipeline.ledger import Ledger, finished_shards
from pipeline.plan.outline import Outline, PickledPlan, ShardSelection, all_scopes, part_units, pending_items
from pipeline.plan.pools import Pools
from pipeline.storage import Storage


def test_a_marker_that_was_lost_behind_the_index_is_missed_before_a_run_says_that_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "dataset": "d-0",
        "shards": ["s"],
        "sources": {"n-1": {}},
        "attacks": {"mi-2": {}},
        "targets": {"t-3": {}},
    }
    planned = Outline(record, (ShardSelection(ShardFile("s.tar", "s", 1, "v"), None),))
    ledger = Ledger(Storage(str(tmp_path / "store"), create=True))
    units = part_units(planned, "n-1", Part("s", 0, 1))
    for unit in units:
        ledger.commit(unit, b"data", "tar", {"n_ok": 1})
    monkeypatch.setattr(finished_shards, "_BLOCK_MARKERS", 1)
    finished_shards.add_to_index(ledger.storage, ledger.list_committed(all_scopes(planned), shards=["s"]), ["s"])
    ledger.storage.delete([units[-1].marker_key])
    assert not pending_items(planned, ledger.list_committed(all_scopes(planned), shards=["s"])), "the index is read"

    def start(*_: object) -> None:
        raise Interrupted("there is work")

    monkeypatch.setattr(run, "_start", start)
    with pytest.raises(Interrupted, match="there is work"):
        run.run_plan(PickledPlan(planned, b""), ledger.storage.url, pools=Pools())
