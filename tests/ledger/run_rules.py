"""Rules of random histories: runs that live, end and claim shards."""

import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.ledger import Ledger, leases
from pipeline.storage import Storage
from tests.ledger.faults import skewed

SHARD_PATHS = ["p/n-1/s", "p/n-1/t"]
WRITERS = st.integers(0, 2)


class RunRules(RuleBasedStateMachine):
    """Three writers, each with one run at a time, and their claims in one store."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.ledger = Ledger(Storage(str(self.folder)))
        self.storage = self.ledger.storage
        # The current run of each writer; a new process is a new run.
        self.runs = ["run0-0", "run1-0", "run2-0"]
        self.alive: set[str] = set()

    @rule(writer=WRITERS, skew_s=st.sampled_from([0.0, 3600.0, -3600.0]))
    def write_heartbeat_with_skew(self, writer: int, skew_s: float) -> None:
        """A run is alive, or back after a lost lease; its machine's clock may be an hour off."""
        self.beat(self.runs[writer], "running", skew_s)

    @rule(writer=WRITERS)
    def end_run(self, writer: int) -> None:
        self.beat(self.runs[writer], "stopped")
        self.start_new_run(writer)

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 100))
    def let_lease_run_out(self, which: int) -> None:
        """By the store's clock: the time at which the run's record was written."""
        run = sorted(self.alive)[which % len(self.alive)]
        self.age([self.folder / f"runs/{run}.json"], leases.LEASE_S + 1)
        self.alive.discard(run)

    @rule(writer=WRITERS, shard_path=st.sampled_from(SHARD_PATHS), skew_s=st.sampled_from([0.0, 3600.0, -3600.0]))
    def claim_shard(self, writer: int, shard_path: str, skew_s: float) -> None:
        """As a worker does before each item, while its driver writes heartbeats."""
        run = self.runs[writer]
        self.beat(run, "running")
        before = self.holder(shard_path)
        with skewed(skew_s):
            other = leases.claim(self.storage, shard_path, run)
        if before is not None and before != run and before in self.alive:
            assert other == before, "a live run's claim was not respected"
            assert self.holder(shard_path) == before
        else:
            assert other is None, f"a claim of {before}, which is not alive, was respected"
            assert self.holder(shard_path) == run

    @rule(shard_path=st.sampled_from(SHARD_PATHS), writer=WRITERS)
    def claim_shard_by_two_runs_at_once(self, shard_path: str, writer: int) -> None:
        """Both see the same newest claim; put-if-absent lets one of them be the next."""
        slow, fast = self.runs[writer], self.runs[(writer + 1) % 3]
        self.beat(slow, "running")
        self.beat(fast, "running")
        before = self.holder(shard_path)
        real, others_of_fast = self.storage.put_record, list[str | None]()

        def claim_fast_first(key: str, record: dict[str, object], *, if_absent: bool = True) -> bool:
            patch.setattr(self.storage, "put_record", real)
            others_of_fast.append(leases.claim(self.storage, shard_path, fast))
            return real(key, record, if_absent=if_absent)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.storage, "put_record", claim_fast_first)
            other_of_slow = leases.claim(self.storage, shard_path, slow)
        if others_of_fast:
            assert (others_of_fast, other_of_slow) == ([None], fast)
        else:
            assert before in self.alive
            assert other_of_slow == (None if before == slow else before)

    def beat(self, run: str, state: str, skew_s: float = 0.0) -> None:
        with skewed(skew_s):
            leases.write_heartbeat(self.storage, run, plan="p", state=state, counts={})
        (self.alive.add if state == "running" else self.alive.discard)(run)

    def start_new_run(self, writer: int) -> None:
        name, _, number = self.runs[writer].partition("-")
        self.runs[writer] = f"{name}-{int(number) + 1}"

    def holder(self, shard_path: str) -> str | None:
        claims = sorted(stored.key for stored in self.storage.list(f"claims/{shard_path}"))
        return str(self.storage.get_record(claims[-1])["run"]) if claims else None

    def age(self, paths: list[Path], by_s: float) -> None:
        for path in paths:
            if path.exists():
                modified = path.stat().st_mtime - by_s
                os.utime(path, (modified, modified))

    @invariant()
    def live_runs_match_the_store(self) -> None:
        runs = leases.list_runs(self.storage, now=time.time()) if (self.folder / "runs").is_dir() else []
        assert {run.id for run in runs if run.live} == self.alive
