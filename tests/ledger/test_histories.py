"""Random schedules against the ledger and the leases: what is committed never changes, whatever happens.

Some runs work on a few units in one store. They are cut off, do the same work twice, lose responses, miss heartbeats
and come back; clocks are wrong; garbage is collected; shards are indexed as finished, and parts revoked. The ledger
must be consistent after every step.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.data.sample import Part
from pipeline.errors import StorageError
from pipeline.ledger import CommittedParts, Unit, finished_shards, markers
from pipeline.maintenance import garbage
from pipeline.storage import folder, sha256
from tests.conftest import TRIED
from tests.ledger.faults import Cut, SequentialPool, cut_off
from tests.ledger.run_rules import WRITERS, RunRules

HISTORIES = 2000
DAY_S = 86_400.0
UNITS = [Unit("d-0", Part("s", index, 2), "n-1", attack) for attack in ("mi-2", "i-3") for index in range(2)]


@dataclass
class Delivery:
    """A unit of which one writer has put the data, and not yet the marker."""

    writer: int
    unit: Unit
    data: bytes


class Histories(RunRules):
    """The store, and what has to be read from it."""

    def __init__(self) -> None:
        super().__init__()
        TRIED["histories"] += 1
        self.committed: dict[Unit, tuple[str, bytes]] = {}
        self.files: dict[Unit, dict[Path, bytes]] = {}
        self.open: list[Delivery] = []
        self.garbage_found: list[garbage.Garbage] = []
        self.seen: CommittedParts | None = None

    def teardown(self) -> None:
        try:
            self.complete_all_units()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    # Committing

    @rule(writer=WRITERS, unit=st.sampled_from(UNITS), device=st.integers(0, 1))
    def commit_unit(self, writer: int, unit: Unit, device: int) -> None:
        """Commits at once; for a committed unit this is a retry, or an item that was assigned twice."""
        data = data_of(unit, device)
        self.check_hash(unit, data, self.ledger.commit(unit, data, "tar", {"run": self.runs[writer]}).sha256)

    @rule(writer=WRITERS, unit=st.sampled_from(UNITS), device=st.integers(0, 1))
    def put_data_without_marker(self, writer: int, unit: Unit, device: int) -> None:
        """The marker follows later, or never after a crash."""
        delivery = Delivery(writer, unit, data_of(unit, device))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.storage, "put_record", cut_off)
            with pytest.raises(Cut):
                self.ledger.commit(unit, delivery.data, "tar", {"run": self.runs[writer]})
        self.open.append(delivery)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100))
    def put_marker_of_open_delivery(self, which: int) -> None:
        """The data is not put again: two writers may both put data before either puts a marker."""
        delivery = self.open.pop(which % len(self.open))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.storage, "put", lambda key, data: None)
            marker = self.ledger.commit(delivery.unit, delivery.data, "tar", {"run": self.runs[delivery.writer]})
        self.check_hash(delivery.unit, delivery.data, marker.sha256)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100))
    def crash_between_data_and_marker(self, which: int) -> None:
        self.open.pop(which % len(self.open))

    @rule(writer=WRITERS, unit=st.sampled_from(UNITS), device=st.integers(0, 1), responses=st.integers(1, 3))
    def commit_and_lose_responses(self, writer: int, unit: Unit, device: int, responses: int) -> None:
        """The write succeeds, or an earlier one did, and the writer gets an error."""
        data, real = data_of(unit, device), folder.put_durably
        requests = [0]

        def put_then_fail(root: Path, key: str, data: bytes, *, replace: bool) -> None:
            real(root, key, data, replace=replace)
            requests[0] += 1
            if not replace and requests[0] <= 1 + responses:
                raise OSError(5, "the response is lost")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "put_durably", put_then_fail)
            marker = self.ledger.commit(unit, data, "tar", {"run": self.runs[writer]})
        self.check_hash(unit, data, marker.sha256)

    @rule(
        writer=WRITERS, unit=st.sampled_from(UNITS), device=st.integers(0, 1), step=st.sampled_from(["data", "marker"])
    )
    def commit_to_a_failing_store(self, writer: int, unit: Unit, device: int, step: str) -> None:
        """Nothing is written, and the writer gets an error: a failed item."""
        real = folder.put_durably

        def put_or_fail(root: Path, key: str, data: bytes, *, replace: bool) -> None:
            if replace == (step == "data"):
                raise OSError(28, "no room")
            real(root, key, data, replace=replace)

        data = data_of(unit, device)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "put_durably", put_or_fail)
            if step == "marker" and unit in self.committed:  # the read-back finds the earlier one
                self.check_hash(unit, data, self.ledger.commit(unit, data, "tar", {}).sha256)
            else:
                with pytest.raises(StorageError):
                    self.ledger.commit(unit, data, "tar", {"run": self.runs[writer]})

    def check_hash(self, unit: Unit, data: bytes, marker_sha256: str) -> None:
        """Every writer must get the marker of the first commit."""
        digest, _ = self.committed.setdefault(unit, (sha256(data), data))
        assert marker_sha256 == digest, "a writer got another marker than the stored one"

    @rule(writer=WRITERS)
    def crash_and_restart(self, writer: int) -> None:
        """Open deliveries are left as they are; claims of the old run hold until its lease runs out."""
        self.open = [delivery for delivery in self.open if delivery.writer != writer]
        self.start_new_run(writer)

    # The index of finished shards

    @rule()
    def list_for_index(self) -> None:
        """As a run's progress report does; what it has seen may be written to the index some steps later."""
        self.seen = self.list_with_index()

    @precondition(lambda self: self.seen is not None)
    @rule()
    def write_index(self) -> None:
        assert self.seen is not None
        finished_shards.add_to_index(self.storage, self.seen, ["s"])

    @precondition(lambda self: not self.alive)
    @rule(index=st.integers(0, 1))
    def revoke_part(self, index: int) -> None:
        """Nobody else may be at work then; one that has lost its lease may write what it has seen meanwhile."""
        real = self.storage.delete

        def delete(keys: Sequence[str]) -> None:
            if self.seen is not None:
                finished_shards.add_to_index(self.storage, self.seen, ["s"])
            real(keys)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.storage, "delete", delete)
            self.ledger.revoke("d-0", [Part("s", index, 2)])
        for unit in UNITS:
            if unit.part.index == index:
                self.committed.pop(unit, None)
                self.files.pop(unit, None)

    def list_with_index(self) -> CommittedParts:
        return self.ledger.list_committed({unit.scope: None for unit in UNITS}, shards=["s"])

    # Time and garbage

    @rule()
    def let_a_day_pass(self) -> None:
        """No delivery stays open that long: a process that sleeps for a day counts as crashed."""
        self.open = []
        self.alive = set()
        self.age([path for path in self.folder.rglob("*") if path.is_file()], DAY_S + 1)

    @rule()
    def find_garbage(self) -> None:
        self.garbage_found = garbage.find(self.ledger, age_s=DAY_S)
        referenced = {self.ledger.read_marker(unit).object for unit in self.committed}
        assert not referenced & {item.key for item in self.garbage_found}
        uncommitted = {f"{delivery.unit.data_key}-{sha256(delivery.data)[:16]}.tar" for delivery in self.open}
        assert not uncommitted & {item.key for item in self.garbage_found}, "a writer would lose its data"

    @rule()
    def remove_garbage(self) -> None:
        """Garbage that was found some steps ago, and may have been committed since."""
        if self.alive:
            with pytest.raises(StorageError, match="is at work"):
                garbage.remove(self.ledger, self.garbage_found, age_s=DAY_S)
        else:
            garbage.remove(self.ledger, self.garbage_found, age_s=DAY_S)
            self.garbage_found = []

    @rule(writer=WRITERS, unit=st.sampled_from(UNITS), device=st.integers(0, 1))
    def commit_found_garbage_before_removal(self, writer: int, unit: Unit, device: int) -> None:
        """A schedule that is rare by chance: an old orphan is listed as garbage, and then committed."""
        self.put_data_without_marker(writer, unit, device)
        self.let_a_day_pass()
        self.find_garbage()
        self.commit_unit(writer, unit, device)
        self.remove_garbage()

    # Invariants

    @invariant()
    def committed_data_is_unchanged(self) -> None:
        committed = self.ledger.list_committed({unit.scope: None for unit in UNITS})
        assert self.list_with_index() == committed, "the index says what is not so"
        listed = list(self.ledger.list_units("adversarial"))
        assert len(listed) == len(set(listed))
        assert set(listed) == set(self.committed) == {unit for unit in UNITS if unit in committed}
        for unit, (digest, data) in self.committed.items():
            if unit not in self.files:
                marker = self.ledger.read_marker(unit)
                assert marker.sha256 == digest
                assert self.ledger.read_data(marker) == data
                paths = [self.folder / unit.marker_key, self.folder / marker.object]
                self.files[unit] = {path: path.read_bytes() for path in paths}
            # Verified once; from then on, equal bytes are enough.
            assert all(path.read_bytes() == data for path, data in self.files[unit].items())

    def complete_all_units(self) -> None:
        for unit in UNITS:
            for writer in range(2):
                self.commit_unit(writer, unit, writer)
        self.committed_data_is_unchanged()
        assert set(self.committed) == set(UNITS)


def data_of(unit: Unit, device: int) -> bytes:
    """A unit's data as computed on a device: two devices need not agree to the byte."""
    return f"{unit.path} on device {device}".encode()


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without syncs and threads, which would take most of a step's time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for module in (markers, finished_shards):
        monkeypatch.setattr(module, "ThreadPoolExecutor", SequentialPool)
    monkeypatch.setattr(finished_shards, "_BLOCK_MARKERS", len(UNITS))


@pytest.mark.journey
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("_quick")
def test_committed_data_is_unchanged_and_unique_in_random_histories() -> None:
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=20,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
