import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.ledger import leases
from pipeline.ledger.leases import RunRecord
from pipeline.storage import Storage
from tests.conftest import ROOT

SHARD_PATH = "plan/source/shard"


def beat(storage: Storage, run: str, *, state: str = "running", **counts: object) -> None:
    leases.write_heartbeat(storage, run, plan="plan", state=state, counts=counts)


def run_records(storage: Storage) -> dict[str, RunRecord]:
    return {run.id: run for run in leases.list_runs(storage, now=storage.read_clock())}


def let_lease_run_out(storage: Storage, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a run's record old in a folder; on S3, where times cannot be set, shortens the lease."""
    if storage.url.startswith("s3://"):
        monkeypatch.setattr(leases, "LEASE_S", -1e-9)
        return
    path = Path(storage.url_of(f"runs/{run}.json"))
    old = path.stat().st_mtime - leases.LEASE_S
    os.utime(path, (old, old))


def test_a_heartbeat_is_read_back(storage: Storage) -> None:
    beat(storage, "one", items=7)
    beat(storage, "two", state="done")
    found = run_records(storage)
    assert (found["one"].live, found["two"].live) == (True, False)
    assert found["one"].on_this_machine
    assert {"items": 7, "plan": "plan", "pid": os.getpid()}.items() <= found["one"].record.items()
    assert found["one"].age_s < leases.LEASE_S


def test_a_damaged_run_record_is_ignored(storage: Storage) -> None:
    beat(storage, "one")
    whole = storage.get("runs/one.json")
    for damaged in (b"", whole[:-3], whole.replace(b"running", b"runninG"), b"[]", b"\xff\xfe"):
        storage.put("runs/one.json", damaged)
        assert run_records(storage) == {}


def test_the_first_of_two_live_runs_keeps_its_claim(storage: Storage) -> None:
    for run in ("one", "two"):
        beat(storage, run)
    assert leases.claim(storage, SHARD_PATH, "one") is None
    assert leases.claim(storage, SHARD_PATH, "two") == "one"
    assert leases.claim(storage, SHARD_PATH, "one") is None
    assert leases.claim(storage, "plan/source/shard-2", "two") is None


def test_a_claim_of_an_ended_run_is_free(storage: Storage) -> None:
    for run in ("one", "two"):
        beat(storage, run)
    leases.claim(storage, SHARD_PATH, "one")
    beat(storage, "one", state="stopped")
    assert leases.claim(storage, SHARD_PATH, "two") is None
    beat(storage, "one")
    assert leases.claim(storage, SHARD_PATH, "one") == "two"


def test_a_claim_is_free_when_its_lease_has_run_out(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("one", "two"):
        beat(storage, run)
    leases.claim(storage, SHARD_PATH, "one")
    assert leases.claim(storage, SHARD_PATH, "two") == "one"
    let_lease_run_out(storage, "one", monkeypatch)
    beat(storage, "two")
    assert leases.claim(storage, SHARD_PATH, "two") is None


def test_only_the_clock_of_the_store_decides_which_run_is_live(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for run in ("one", "two"):
        beat(storage, run)
        leases.claim(storage, SHARD_PATH, "one")
        os.utime(tmp_path / "runs" / f"{run}.json", (10_000, 10_000))  # both are of 1970
    assert leases.claim(storage, SHARD_PATH, "two") == "one"
    os.utime(tmp_path / "runs" / "two.json", (10_000 + leases.LEASE_S - 1,) * 2)
    assert leases.claim(storage, SHARD_PATH, "two") == "one"
    os.utime(tmp_path / "runs" / "two.json", (10_000 + leases.LEASE_S,) * 2)
    assert leases.claim(storage, SHARD_PATH, "two") is None


def test_exactly_one_of_many_runs_takes_over_the_claim_of_a_dead_run(storage: Storage) -> None:
    count = 12
    beat(storage, "dead", state="failed")
    leases.claim(storage, SHARD_PATH, "dead")
    for number in range(count):
        beat(storage, f"run-{number}")
    ready, answers = threading.Barrier(count), {}

    def race(number: int) -> None:
        ready.wait()
        answers[number] = leases.claim(storage, SHARD_PATH, f"run-{number}")

    threads = [threading.Thread(target=race, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (number for number, holder in answers.items() if holder is None)
    assert {holder for number, holder in answers.items() if number != winner} == {f"run-{winner}"}
    assert len(list(storage.list(f"claims/{SHARD_PATH}"))) == 2


@pytest.mark.parametrize("what", ["run", "claim"])
def test_a_damaged_record_of_a_run_or_a_claim_does_not_block_a_shard(storage: Storage, what: str) -> None:
    for run in ("one", "two"):
        beat(storage, run)
    leases.claim(storage, SHARD_PATH, "one")
    storage.put("runs/one.json" if what == "run" else f"claims/{SHARD_PATH}/00000000.json", b"{")
    assert leases.claim(storage, SHARD_PATH, "two") is None
    beat(storage, "one")
    assert leases.claim(storage, SHARD_PATH, "one") == "two"


def test_a_run_without_a_record_cannot_take_over_a_claim(storage: Storage) -> None:
    beat(storage, "one")
    leases.claim(storage, SHARD_PATH, "one")
    with pytest.raises(StorageError, match="the record of this run is gone"):
        leases.claim(storage, SHARD_PATH, "stranger")


HEARTBEAT_AND_SLEEP = """
import sys, time
from pipeline.ledger import leases
from pipeline.storage import Storage
storage = Storage(sys.argv[1])
leases.write_heartbeat(storage, "killed", plan="plan", state="running", counts={})
leases.claim(storage, "plan/source/shard", "killed")
print("beating", flush=True)
time.sleep(600)
"""


def test_a_run_killed_on_this_machine_is_marked_as_failed_and_its_claims_are_free(storage: Storage) -> None:
    beat(storage, "own")
    with subprocess.Popen(
        [sys.executable, "-c", HEARTBEAT_AND_SLEEP, storage.url], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"beating\n"
        alive = run_records(storage)["killed"]
        assert alive.record["pid"] == process.pid
        assert not leases.mark_failed_if_process_is_gone(storage, alive), "its process exists"
        assert leases.claim(storage, SHARD_PATH, "own") == "killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    dead = run_records(storage)["killed"]
    assert dead.live, "its lease has not run out"
    assert leases.mark_failed_if_process_is_gone(storage, dead)
    assert run_records(storage)["killed"].record["state"] == "failed"
    assert not leases.mark_failed_if_process_is_gone(storage, run_records(storage)["killed"])
    assert leases.claim(storage, SHARD_PATH, "own") is None


def test_a_run_on_another_machine_is_not_marked_as_failed(storage: Storage) -> None:
    record = {"plan": "plan", "state": "running", "host": f"not-{platform.node()}", "pid": 2**22 + 1}
    storage.put_record("runs/far.json", record, if_absent=False)
    far = run_records(storage)["far"]
    assert (far.live, far.on_this_machine) == (True, False)
    assert not leases.mark_failed_if_process_is_gone(storage, far)
    storage.put_record("runs/near.json", {**record, "host": platform.node()}, if_absent=False)
    assert leases.mark_failed_if_process_is_gone(storage, run_records(storage)["near"])


@pytest.mark.parametrize("record", [{}, {"run": None}, {"run": "x" * 5000}, {"run": "../claims/plan"}])
def test_a_claim_without_a_valid_run_id_is_free(storage: Storage, record: dict[str, object]) -> None:
    storage.put_record("claims/plan/source/odd/00000000.json", record)
    leases.write_heartbeat(storage, "own", plan="plan", state="running", counts={})
    assert leases.claim(storage, "plan/source/odd", "own") is None


@pytest.mark.parametrize("pid", [None, "x", 10**30])
def test_a_run_without_a_valid_pid_is_not_marked_as_failed(storage: Storage, pid: object) -> None:
    leases.write_heartbeat(storage, "odd", plan="plan", state="running", counts={"pid": pid})
    (found,) = leases.list_runs(storage, now=storage.stat("runs/odd.json").modified)
    assert not leases.mark_failed_if_process_is_gone(storage, found)


def test_a_released_shard_can_be_claimed_by_another_run(storage: Storage) -> None:
    for run in ("one", "other"):
        leases.write_heartbeat(storage, run, plan="p", state="running", counts={})
    assert leases.claim(storage, "p/net/s", "one") is None
    assert leases.claim(storage, "p/net/s", "other") == "one"
    leases.release(storage, "p/net/s", "other")
    assert leases.claim(storage, "p/net/s", "other") == "one", "a run releases only its own claims"
    leases.release(storage, "p/net/s", "one")
    assert leases.claim(storage, "p/net/s", "other") is None
    assert leases.claim(storage, "p/net/s", "one") == "other"
    leases.release(storage, "p/net/none", "one")


def test_exclusive_access_and_a_new_run_find_each_other(storage: Storage) -> None:
    beat(storage, "mine")
    assert leases.find_exclusive_run(storage, "mine") is None
    with leases.exclusive_access(storage) as renew_and_find_other:
        other = renew_and_find_other()
        assert other is not None
        assert other.id == "mine"
        exclusive = leases.find_exclusive_run(storage, "mine")
        assert exclusive is not None
        assert exclusive.exclusive
        beat(storage, "mine", state="done")
        assert renew_and_find_other() is None
    assert leases.find_exclusive_run(storage, "mine") is None
    assert run_records(storage).keys() == {"mine"}, "its record is removed"


def test_the_holder_of_a_shard_is_found_without_a_claim(storage: Storage) -> None:
    beat(storage, "one")
    beat(storage, "two")
    assert leases.other_holder(storage, SHARD_PATH, "two") is None
    assert leases.claim(storage, SHARD_PATH, "one") is None
    assert leases.other_holder(storage, SHARD_PATH, "two") == "one"
    assert leases.other_holder(storage, SHARD_PATH, "one") is None
    leases.release(storage, SHARD_PATH, "one")
    assert leases.other_holder(storage, SHARD_PATH, "two") is None
    beat(storage, "one", state="done")
    assert leases.claim(storage, SHARD_PATH, "two") is None
    assert leases.other_holder(storage, SHARD_PATH, "one") == "two"
