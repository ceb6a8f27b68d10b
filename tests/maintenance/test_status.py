import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import IntegrityError, StorageError
from pipeline.ledger import Failure, Ledger, leases
from pipeline.ledger.progress import Progress
from pipeline.maintenance.status import PlanStatus, status
from pipeline.plan.job import Job
from pipeline.storage import Storage
from tests.samples import attack, make_plan, sample, tiny_job, write_shard
from tests.stages.runs import run_stages


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path) -> Job:
    for number in range(2):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(6)])
    return tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"), attack("noise")))


def only(ledger: Ledger) -> PlanStatus:
    (plan_status,) = status(ledger)
    return plan_status


def beat(storage: Storage, run: str, plan: str, *, state: str = "running", **counts: object) -> None:
    defaults = {"items": 4, "items_left": 4, "images": 0, "failed": 0, "seconds": 0.0}
    leases.write_heartbeat(storage, run, plan=plan, state=state, counts={**defaults, **counts})


def test_a_plan_is_followed_from_start_to_end(job: Job, storage: Storage) -> None:
    ledger = Ledger(storage)
    planned = make_plan(job, storage.url)
    identity = ledger.record_plan(planned.to_record())
    before = only(ledger)
    assert (before.id, before.dataset, before.complete) == (identity, planned.dataset, False)
    assert before.progress == Progress(attacked=0, to_attack=0, scored=0, to_score=0, shards_known=0, shards=2)
    run_stages(replace(planned, selections=planned.selections[:1]), ledger)
    halfway = only(ledger)
    assert halfway.progress == Progress(attacked=4, to_attack=4, scored=6, to_score=6, shards_known=1, shards=2)
    assert not halfway.complete, "a shard without commits is not done"
    run_stages(planned, ledger)
    after = only(ledger)
    assert after.progress == Progress(attacked=8, to_attack=8, scored=12, to_score=12, shards_known=2, shards=2)
    assert after.complete
    lost = next(ledger.list_units("transfer"))
    storage.delete([lost.marker_key])
    assert only(ledger).progress.scored == 11
    assert not only(ledger).complete


def test_every_plan_has_its_own_runs_and_failures(job: Job, storage: Storage) -> None:
    ledger = Ledger(storage)
    wider = replace(job, attacks=(*job.attacks, attack("i")))
    plans = [ledger.record_plan(make_plan(any_job, storage.url).to_record()) for any_job in (job, wider)]
    for plan in plans:
        beat(storage, f"run-of-{plan}", plan)
        ledger.record_failure(Failure(plan, "source", "s-0", 0, 1, "v", f"item of {plan}", "broken", 3, "run"))
    by_plan = {plan_status.id: plan_status for plan_status in status(ledger)}
    assert by_plan.keys() == set(plans)
    for plan in plans:
        assert [run.id for run in by_plan[plan].runs] == [f"run-of-{plan}"]
        assert [failure.item for failure in by_plan[plan].failures] == [f"item of {plan}"]


def test_speed_and_remaining_time_come_from_live_runs(job: Job, storage: Storage) -> None:
    ledger = Ledger(storage)
    plan = ledger.record_plan(make_plan(job, storage.url).to_record())
    assert (only(ledger).images_per_s, only(ledger).remaining_s) == (None, None)
    beat(storage, "ended", plan, state="done", images=1000, items_left=0, seconds=1.0)
    assert (only(ledger).images_per_s, only(ledger).remaining_s) == (None, None)
    beat(storage, "begun", plan)
    assert (only(ledger).images_per_s, only(ledger).remaining_s) == (None, None), "no item is done yet"
    beat(storage, "begun", plan, images=30, items_left=1, seconds=60.0)
    assert (only(ledger).images_per_s, only(ledger).remaining_s) == (0.5, 20.0)
    beat(storage, "second", plan, images=60, items_left=3, seconds=30.0)
    assert (only(ledger).images_per_s, only(ledger).remaining_s) == (2.5, 90.0), "speeds add up"


def test_images_in_zero_seconds_are_not_an_infinite_speed(job: Job, storage: Storage) -> None:
    ledger = Ledger(storage)
    plan = ledger.record_plan(make_plan(job, storage.url).to_record())
    beat(storage, "quick", plan, images=4, items_left=3, seconds=0.0)
    assert only(ledger).images_per_s is None


def test_a_damaged_plan_or_failure_is_one_line(job: Job, storage: Storage) -> None:
    ledger = Ledger(storage)
    plan = ledger.record_plan(make_plan(job, storage.url).to_record())
    failure = Failure(plan, "source", "s-0", 0, 1, "v", "item", "broken", 3, "run")
    storage.put_record(failure.key, {"plan": plan})
    with pytest.raises(IntegrityError, match="not a failure"):
        status(ledger)
    storage.put(failure.key, b"junk")
    with pytest.raises(IntegrityError, match="not a record"):
        status(ledger)
    storage.delete([failure.key])
    storage.put(f"plans/{plan}.json", storage.get(f"plans/{plan}.json")[:-9])
    with pytest.raises(IntegrityError, match=f"plans/{plan}.json: not a record"):
        status(ledger)


def test_on_a_read_only_store_live_runs_are_told_by_this_machines_clock(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "store"), create=True)
    ledger = Ledger(storage)
    plan = ledger.record_plan(make_plan(job, storage.url).to_record())
    for run in ("early", "late"):
        beat(storage, run, plan)
    record = tmp_path / "store" / "runs" / "early.json"
    long_ago = record.stat().st_mtime - 2 * leases.LEASE_S
    os.utime(record, (long_ago, long_ago))

    def refuse(self: Storage, key: str, data: bytes) -> None:  # permissions do not stop root, who may run the tests
        raise StorageError("read-only")

    monkeypatch.setattr(Storage, "put", refuse)
    late, early = only(ledger).runs
    assert (late.id, late.live) == ("late", True)
    assert (early.id, early.live) == ("early", False)
