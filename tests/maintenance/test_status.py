import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import IntegrityError, StorageError
from pipeline.ledger import Failure, Ledger, leases
from pipeline.ledger.progress import Progress
from pipeline.maintenance.status import PlanStatus, status
from pipeline.plan.resolve import Job
from pipeline.storage import Storage
from tests.samples import attack, resolve, sample, tiny_job, write_shard
from tests.stages.test_stages import run_all


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path) -> Job:
    for number in range(2):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(6)])
    return tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"), attack("noise")))


def only(ledger: Ledger) -> PlanStatus:
    (found,) = status(ledger)
    return found


def beat(storage: Storage, run: str, plan: str, *, state: str = "running", **counts: object) -> None:
    said = {"items": 4, "items_left": 4, "images": 0, "failed": 0, "seconds": 0.0}
    leases.beat(storage, run, plan=plan, state=state, counts={**said, **counts})


def test_a_plan_is_followed_from_nothing_to_the_end(job: Job, storage: Storage) -> None:
    ledger = Ledger(storage)
    planned = resolve(job, storage.url)
    identity = ledger.record_plan(planned.describe())
    before = only(ledger)
    assert (before.id, before.dataset, before.complete) == (identity, planned.dataset, False)
    assert before.progress == Progress(attacked=0, to_attack=0, scored=0, to_score=0, shards_known=0, shards=2)
    run_all(replace(planned, takes=planned.takes[:1]), ledger)
    halfway = only(ledger)
    assert halfway.progress == Progress(attacked=4, to_attack=4, scored=6, to_score=6, shards_known=1, shards=2)
    assert not halfway.complete, "a shard that nobody has opened is not done"
    run_all(planned, ledger)
    after = only(ledger)
    assert after.progress == Progress(attacked=8, to_attack=8, scored=12, to_score=12, shards_known=2, shards=2)
    assert after.complete
    lost = next(ledger.units("transfer"))
    storage.delete([lost.marker])
    assert only(ledger).progress.scored == 11
    assert not only(ledger).complete


def test_each_plan_is_told_apart_with_its_own_runs_and_failures(job: Job, storage: Storage) -> None:
    ledger = Ledger(storage)
    wider = replace(job, attacks=(*job.attacks, attack("i")))
    plans = [ledger.record_plan(resolve(each, storage.url).describe()) for each in (job, wider)]
    for plan in plans:
        beat(storage, f"run-of-{plan}", plan)
        ledger.fail(Failure(plan, "source", "s-0", 0, 1, "v", f"item of {plan}", "broken", 3, "run"))
    found = {each.id: each for each in status(ledger)}
    assert found.keys() == set(plans)
    for plan in plans:
        assert [run.id for run in found[plan].runs] == [f"run-of-{plan}"]
        assert [failure.item for failure in found[plan].failures] == [f"item of {plan}"]


def test_pace_and_time_left_come_from_the_live_runs(job: Job, storage: Storage) -> None:
    ledger = Ledger(storage)
    plan = ledger.record_plan(resolve(job, storage.url).describe())
    assert (only(ledger).images_per_s, only(ledger).left_s) == (None, None)
    beat(storage, "ended", plan, state="done", images=1000, items_left=0, seconds=1.0)
    assert (only(ledger).images_per_s, only(ledger).left_s) == (None, None)
    beat(storage, "begun", plan)
    assert (only(ledger).images_per_s, only(ledger).left_s) == (None, None), "nothing is known yet of its pace"
    beat(storage, "begun", plan, images=30, items_left=1, seconds=60.0)
    assert (only(ledger).images_per_s, only(ledger).left_s) == (0.5, 20.0)
    beat(storage, "second", plan, images=60, items_left=3, seconds=30.0)
    assert (only(ledger).images_per_s, only(ledger).left_s) == (2.5, 90.0), "rates add up, the slowest is last"


def test_images_within_the_first_moment_are_no_infinite_pace(job: Job, storage: Storage) -> None:
    ledger = Ledger(storage)
    plan = ledger.record_plan(resolve(job, storage.url).describe())
    beat(storage, "quick", plan, images=4, items_left=3, seconds=0.0)
    assert only(ledger).images_per_s is None


def test_a_damaged_plan_or_failure_is_one_line(job: Job, storage: Storage) -> None:
    ledger = Ledger(storage)
    plan = ledger.record_plan(resolve(job, storage.url).describe())
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


def test_where_a_store_may_only_be_read_this_machines_clock_tells_who_lives(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "store"), create=True)
    ledger = Ledger(storage)
    plan = ledger.record_plan(resolve(job, storage.url).describe())
    for run in ("early", "late"):
        beat(storage, run, plan)
    record = tmp_path / "store" / "runs" / "early.json"
    long_ago = record.stat().st_mtime - 2 * leases.LEASE_S
    os.utime(record, (long_ago, long_ago))

    def refuse(self: Storage, key: str, data: bytes) -> None:  # tests may run as root, whom no permission stops
        raise StorageError("read-only")

    monkeypatch.setattr(Storage, "put", refuse)
    late, early = only(ledger).runs
    assert (late.id, late.live) == ("late", True)
    assert (early.id, early.live) == ("early", False)
