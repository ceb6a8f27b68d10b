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
from pipeline.ledger.leases import Seen
from pipeline.storage import Storage
from tests.conftest import ROOT

PLACE = "plan/source/shard"


def beat(storage: Storage, run: str, *, state: str = "running", **counts: object) -> None:
    leases.beat(storage, run, plan="plan", state=state, counts=counts)


def seen(storage: Storage) -> dict[str, Seen]:
    return {run.id: run for run in leases.seen(storage, now=storage.clock())}


def let_lease_run_out(storage: Storage, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder the run's record becomes old; on S3 no time can be set, so that the lease becomes short."""
    if storage.url.startswith("s3://"):
        monkeypatch.setattr(leases, "LEASE_S", -1e-9)
        return
    path = Path(storage.at(f"runs/{run}.json"))
    old = path.stat().st_mtime - leases.LEASE_S
    os.utime(path, (old, old))


def test_what_a_run_says_is_seen_by_others(storage: Storage) -> None:
    beat(storage, "one", items=7)
    beat(storage, "two", state="done")
    found = seen(storage)
    assert (found["one"].live, found["two"].live) == (True, False)
    assert found["one"].here
    assert {"items": 7, "plan": "plan", "pid": os.getpid()}.items() <= found["one"].record.items()
    assert found["one"].age_s < leases.LEASE_S


def test_a_record_that_is_damaged_is_nobodys(storage: Storage) -> None:
    beat(storage, "one")
    whole = storage.get("runs/one.json")
    for damaged in (b"", whole[:-3], whole.replace(b"running", b"runninG"), b"[]", b"\xff\xfe"):
        storage.put("runs/one.json", damaged)
        assert seen(storage) == {}


def test_of_two_live_runs_the_first_keeps_its_claim(storage: Storage) -> None:
    for run in ("one", "two"):
        beat(storage, run)
    assert leases.claim(storage, PLACE, "one") is None
    assert leases.claim(storage, PLACE, "two") == "one"
    assert leases.claim(storage, PLACE, "one") is None
    assert leases.claim(storage, "plan/source/shard-2", "two") is None


def test_a_run_that_has_ended_holds_no_claim(storage: Storage) -> None:
    for run in ("one", "two"):
        beat(storage, run)
    leases.claim(storage, PLACE, "one")
    beat(storage, "one", state="stopped")
    assert leases.claim(storage, PLACE, "two") is None
    beat(storage, "one")
    assert leases.claim(storage, PLACE, "one") == "two"


def test_a_claim_is_taken_over_when_its_lease_has_run_out(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("one", "two"):
        beat(storage, run)
    leases.claim(storage, PLACE, "one")
    assert leases.claim(storage, PLACE, "two") == "one"
    let_lease_run_out(storage, "one", monkeypatch)
    beat(storage, "two")
    assert leases.claim(storage, PLACE, "two") is None


def test_no_clock_but_the_stores_decides_what_is_live(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for run in ("one", "two"):
        beat(storage, run)
        leases.claim(storage, PLACE, "one")
        os.utime(tmp_path / "runs" / f"{run}.json", (10_000, 10_000))  # by which both are of 1970
    assert leases.claim(storage, PLACE, "two") == "one"
    os.utime(tmp_path / "runs" / "two.json", (10_000 + leases.LEASE_S - 1,) * 2)
    assert leases.claim(storage, PLACE, "two") == "one"
    os.utime(tmp_path / "runs" / "two.json", (10_000 + leases.LEASE_S,) * 2)
    assert leases.claim(storage, PLACE, "two") is None


def test_of_many_that_find_a_dead_holder_exactly_one_takes_over(storage: Storage) -> None:
    count = 12
    beat(storage, "dead", state="failed")
    leases.claim(storage, PLACE, "dead")
    for number in range(count):
        beat(storage, f"run-{number}")
    ready, answers = threading.Barrier(count), {}

    def race(number: int) -> None:
        ready.wait()
        answers[number] = leases.claim(storage, PLACE, f"run-{number}")

    threads = [threading.Thread(target=race, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (number for number, holder in answers.items() if holder is None)
    assert {holder for number, holder in answers.items() if number != winner} == {f"run-{winner}"}
    assert len(list(storage.list(f"claims/{PLACE}"))) == 2


@pytest.mark.parametrize("what", ["run", "claim"])
def test_a_damaged_record_of_a_run_or_a_claim_holds_nothing_up(storage: Storage, what: str) -> None:
    for run in ("one", "two"):
        beat(storage, run)
    leases.claim(storage, PLACE, "one")
    storage.put("runs/one.json" if what == "run" else f"claims/{PLACE}/00000000.json", b"{")
    assert leases.claim(storage, PLACE, "two") is None
    beat(storage, "one")
    assert leases.claim(storage, PLACE, "one") == "two"


def test_a_run_without_a_record_can_take_nothing_over(storage: Storage) -> None:
    beat(storage, "one")
    leases.claim(storage, PLACE, "one")
    with pytest.raises(StorageError, match="the record of this run is gone"):
        leases.claim(storage, PLACE, "stranger")


BEATING = """
import sys, time
from pipeline import runs
from pipeline.storage import Storage
storage = Storage(sys.argv[1])
runs.beat(storage, "killed", plan="plan", state="running", counts={})
runs.claim(storage, "plan/source/shard", "killed")
print("beating", flush=True)
time.sleep(600)
"""


def test_a_run_that_was_killed_here_is_buried_and_its_claims_are_free(storage: Storage) -> None:
    beat(storage, "own")
    with subprocess.Popen([sys.executable, "-c", BEATING, storage.url], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"beating\n"
        alive = seen(storage)["killed"]
        assert alive.record["pid"] == process.pid
        assert not leases.bury(storage, alive), "its process is there"
        assert leases.claim(storage, PLACE, "own") == "killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    dead = seen(storage)["killed"]
    assert dead.live, "its lease runs"
    assert leases.bury(storage, dead)
    assert seen(storage)["killed"].record["state"] == "failed"
    assert not leases.bury(storage, seen(storage)["killed"])
    assert leases.claim(storage, PLACE, "own") is None


def test_what_runs_elsewhere_is_not_buried(storage: Storage) -> None:
    record = {"plan": "plan", "state": "running", "host": f"not-{platform.node()}", "pid": 2**22 + 1}
    storage.put_record("runs/far.json", record, once=False)
    far = seen(storage)["far"]
    assert (far.live, far.here) == (True, False)
    assert not leases.bury(storage, far)
    storage.put_record("runs/near.json", {**record, "host": platform.node()}, once=False)
    assert leases.bury(storage, seen(storage)["near"])


@pytest.mark.parametrize("record", [{}, {"run": None}, {"run": "x" * 5000}, {"run": "../claims/plan"}])
def test_a_claim_that_names_no_run_is_nobodys(storage: Storage, record: dict[str, object]) -> None:
    storage.put_record("claims/plan/source/odd/00000000.json", record)
    leases.beat(storage, "own", plan="plan", state="running", counts={})
    assert leases.claim(storage, "plan/source/odd", "own") is None


@pytest.mark.parametrize("pid", [None, "x", 10**30])
def test_a_run_without_a_process_to_look_for_is_not_buried(storage: Storage, pid: object) -> None:
    leases.beat(storage, "odd", plan="plan", state="running", counts={"pid": pid})
    (found,) = leases.seen(storage, now=storage.stat("runs/odd.json").modified)
    assert not leases.bury(storage, found)


def test_a_shard_that_is_given_up_is_another_runs_to_try(storage: Storage) -> None:
    for run in ("one", "other"):
        leases.beat(storage, run, plan="p", state="running", counts={})
    assert leases.claim(storage, "p/net/s", "one") is None
    assert leases.claim(storage, "p/net/s", "other") == "one"
    leases.release(storage, "p/net/s", "other")
    assert leases.claim(storage, "p/net/s", "other") == "one", "it is not theirs to give"
    leases.release(storage, "p/net/s", "one")
    assert leases.claim(storage, "p/net/s", "other") is None
    assert leases.claim(storage, "p/net/s", "one") == "other"
    leases.release(storage, "p/net/none", "one")


def test_whoever_is_alone_and_a_run_that_begins_see_each_other(storage: Storage) -> None:
    beat(storage, "mine")
    assert leases.one_alone(storage, "mine") is None
    with leases.alone(storage) as other:
        found = other()
        assert found is not None
        assert found.id == "mine"
        told = leases.one_alone(storage, "mine")
        assert told is not None
        assert told.alone
        beat(storage, "mine", state="done")
        assert other() is None
    assert leases.one_alone(storage, "mine") is None
    assert seen(storage).keys() == {"mine"}, "it leaves nothing behind"


def test_one_can_ask_who_has_a_shard_without_taking_it(storage: Storage) -> None:
    beat(storage, "one")
    beat(storage, "two")
    assert leases.holder(storage, PLACE, "two") is None
    assert leases.claim(storage, PLACE, "one") is None
    assert leases.holder(storage, PLACE, "two") == "one"
    assert leases.holder(storage, PLACE, "one") is None
    leases.release(storage, PLACE, "one")
    assert leases.holder(storage, PLACE, "two") is None
    beat(storage, "one", state="done")
    assert leases.claim(storage, PLACE, "two") is None
    assert leases.holder(storage, PLACE, "one") == "two"
