"""Random schedules against the ledger and the claims alone: whatever happens, what is committed stands, once.

Some runs work at a few units on one store. They are cut off, told twice to do the same, lose answers, fall silent and
come back; clocks go wrong; garbage is collected. After every step the ledger must be whole.
"""

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.data.sample import Part
from pipeline.errors import StorageError
from pipeline.ledger import Ledger, Unit, leases, markers
from pipeline.maintenance import garbage
from pipeline.storage import Storage, folder, sha256
from tests.conftest import TRIED

HISTORIES = 2000
DAY_S = 86_400.0
UNITS = [Unit("d-0", Part("s", index, 2), "n-1", attack) for attack in ("mi-2", "i-3") for index in range(2)]
PLACES = ["p/n-1/s", "p/n-1/t"]
WRITERS = st.integers(0, 2)


class Cut(Exception):  # noqa: N818  # no error: the process is gone
    """A writer's process ends here."""


@dataclass
class Delivery:
    """A unit on its way from one writer: its data stands, its marker does not yet."""

    writer: int
    unit: Unit
    data: bytes


class Histories(RuleBasedStateMachine):
    """The store, and what a reader may rely on."""

    def __init__(self) -> None:
        super().__init__()
        TRIED["histories"] += 1
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.ledger = Ledger(Storage(str(self.folder)))
        self.storage = self.ledger.storage
        self.stood: dict[Unit, tuple[str, bytes]] = {}
        self.files: dict[Unit, dict[Path, bytes]] = {}
        self.open: list[Delivery] = []
        self.found: list[garbage.Garbage] = []
        # Each writer's own name; a new process takes a new one.
        self.names = ["run0-0", "run1-0", "run2-0"]
        self.alive: set[str] = set()

    def teardown(self) -> None:
        try:
            self.all_writers_end_their_work()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    # Committing

    @rule(writer=WRITERS, unit=st.sampled_from(UNITS), device=st.integers(0, 1))
    def commits(self, writer: int, unit: Unit, device: int) -> None:
        """In one go; where it stands already this is a retry, or the same item handed out twice."""
        data = made(unit, device)
        self.settle(unit, data, self.ledger.commit(unit, data, "tar", {"run": self.names[writer]}).sha256)

    @rule(writer=WRITERS, unit=st.sampled_from(UNITS), device=st.integers(0, 1))
    def puts_data_and_goes_on_later(self, writer: int, unit: Unit, device: int) -> None:
        """Or never: a crash between data and marker is a delivery that is not taken up again."""
        delivery = Delivery(writer, unit, made(unit, device))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.storage, "put_record", cut_off)
            with pytest.raises(Cut):
                self.ledger.commit(unit, delivery.data, "tar", {"run": self.names[writer]})
        self.open.append(delivery)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100))
    def puts_the_marker_of_an_open_delivery(self, which: int) -> None:
        """Its data is not put again: of two writers, both have put theirs before either's marker."""
        delivery = self.open.pop(which % len(self.open))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.storage, "put", lambda key, data: None)
            marker = self.ledger.commit(delivery.unit, delivery.data, "tar", {"run": self.names[delivery.writer]})
        self.settle(delivery.unit, delivery.data, marker.sha256)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100))
    def crashes_between_data_and_marker(self, which: int) -> None:
        self.open.pop(which % len(self.open))

    @rule(writer=WRITERS, unit=st.sampled_from(UNITS), device=st.integers(0, 1), answers=st.integers(1, 3))
    def commits_and_the_answer_is_lost(self, writer: int, unit: Unit, device: int, answers: int) -> None:
        """The write stands, or an earlier one does, and the writer is told of a failure."""
        data, real, asked = made(unit, device), folder.put_durably, [0]

        def written_then_lost(root: Path, key: str, data: bytes, *, replace: bool) -> None:
            real(root, key, data, replace=replace)
            asked[0] += 1
            if not replace and asked[0] <= 1 + answers:
                raise OSError(5, "the answer is lost")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "put_durably", written_then_lost)
            marker = self.ledger.commit(unit, data, "tar", {"run": self.names[writer]})
        self.settle(unit, data, marker.sha256)

    @rule(
        writer=WRITERS, unit=st.sampled_from(UNITS), device=st.integers(0, 1), step=st.sampled_from(["data", "marker"])
    )
    def the_store_refuses_a_write(self, writer: int, unit: Unit, device: int, step: str) -> None:
        """Nothing is written, and the writer is told: an item that failed."""
        real = folder.put_durably

        def refused(root: Path, key: str, data: bytes, *, replace: bool) -> None:
            if replace == (step == "data"):
                raise OSError(28, "no room")
            real(root, key, data, replace=replace)

        data = made(unit, device)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "put_durably", refused)
            if step == "marker" and unit in self.stood:  # the read-back finds the earlier one
                self.settle(unit, data, self.ledger.commit(unit, data, "tar", {}).sha256)
            else:
                with pytest.raises(StorageError):
                    self.ledger.commit(unit, data, "tar", {"run": self.names[writer]})

    def settle(self, unit: Unit, data: bytes, told: str) -> None:
        """What a writer is told must be what everyone is told from now on."""
        first = self.stood.setdefault(unit, (sha256(data), data))
        assert told == first[0], "a writer was told of another result than the one that stands"

    # Runs and claims

    @rule(writer=WRITERS, skew_s=st.sampled_from([0.0, 3600.0, -3600.0]))
    def beats(self, writer: int, skew_s: float) -> None:
        """A run says that it is alive, or one that was silent is back; its machine's clock may be an hour off."""
        self.beat(self.names[writer], "running", skew_s)

    @rule(writer=WRITERS)
    def ends(self, writer: int) -> None:
        self.beat(self.names[writer], "stopped")
        self.replace(writer)

    @rule(writer=WRITERS)
    def crashes_and_starts_again(self, writer: int) -> None:
        """All that it had open is left as it lies; its claims hold until its lease runs out."""
        self.open = [delivery for delivery in self.open if delivery.writer != writer]
        self.replace(writer)

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 100))
    def falls_silent(self, which: int) -> None:
        """Longer than its lease, by the store's clock: the time at which its record was written."""
        name = sorted(self.alive)[which % len(self.alive)]
        self.age([self.folder / f"runs/{name}.json"], leases.LEASE_S + 1)
        self.alive.discard(name)

    @rule(writer=WRITERS, place=st.sampled_from(PLACES), skew_s=st.sampled_from([0.0, 3600.0, -3600.0]))
    def claims(self, writer: int, place: str, skew_s: float) -> None:
        """As a worker does before each item, while its driver beats."""
        name = self.names[writer]
        self.beat(name, "running")
        before = self.holder(place)
        with skewed(skew_s):
            told = leases.claim(self.storage, place, name)
        if before is not None and before != name and before in self.alive:
            assert told == before, "a live run's claim was not respected"
            assert self.holder(place) == before
        else:
            assert told is None, f"a claim of {before}, which is not alive, was respected"
            assert self.holder(place) == name

    @rule(place=st.sampled_from(PLACES), first=WRITERS)
    def two_claim_at_the_same_time(self, place: str, first: int) -> None:
        """Both see the same last claim; put-if-absent lets one of them be the next."""
        one, two = self.names[first], self.names[(first + 1) % 3]
        self.beat(one, "running")
        self.beat(two, "running")
        before = self.holder(place)
        real, told = self.storage.put_record, list[str | None]()

        def overtaken(key: str, record: dict[str, object], *, once: bool = True) -> bool:
            patch.setattr(self.storage, "put_record", real)
            told.append(leases.claim(self.storage, place, two))
            return real(key, record, once=once)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.storage, "put_record", overtaken)
            answer = leases.claim(self.storage, place, one)
        if told:
            assert (told, answer) == ([None], two)
        else:
            assert before in self.alive
            assert answer == (None if before == one else before)

    def beat(self, name: str, state: str, skew_s: float = 0.0) -> None:
        with skewed(skew_s):
            leases.beat(self.storage, name, plan="p", state=state, counts={})
        (self.alive.add if state == "running" else self.alive.discard)(name)

    def replace(self, writer: int) -> None:
        name, _, number = self.names[writer].partition("-")
        self.names[writer] = f"{name}-{int(number) + 1}"

    def holder(self, place: str) -> str | None:
        claims = sorted(stored.key for stored in self.storage.list(f"claims/{place}"))
        return str(self.storage.record(claims[-1])["run"]) if claims else None

    # Time and garbage

    @rule()
    def a_day_passes(self) -> None:
        """Nobody keeps a delivery open for so long: a process that is asleep for a day counts as crashed."""
        self.open = []
        self.alive = set()
        self.age([path for path in self.folder.rglob("*") if path.is_file()], DAY_S + 1)

    @rule()
    def garbage_is_looked_for(self) -> None:
        self.found = garbage.find(self.ledger, age_s=DAY_S)
        named = {self.ledger.marker(unit).object for unit in self.stood}
        assert not named & {item.key for item in self.found}
        waiting = {f"{each.unit.data}-{sha256(each.data)[:16]}.tar" for each in self.open}
        assert not waiting & {item.key for item in self.found}, "a writer that is at it would lose its data"

    @rule()
    def garbage_is_removed(self) -> None:
        """What was found some steps ago; somebody may have written it again since."""
        if self.alive:
            with pytest.raises(StorageError, match="is at work"):
                garbage.remove(self.ledger, self.found, age_s=DAY_S)
        else:
            garbage.remove(self.ledger, self.found, age_s=DAY_S)
            self.found = []

    @rule(writer=WRITERS, unit=st.sampled_from(UNITS), device=st.integers(0, 1))
    def garbage_is_written_again_before_it_is_removed(self, writer: int, unit: Unit, device: int) -> None:
        """A schedule that chance alone would seldom find: an old orphan is listed, and then becomes a result."""
        self.puts_data_and_goes_on_later(writer, unit, device)
        self.a_day_passes()
        self.garbage_is_looked_for()
        self.commits(writer, unit, device)
        self.garbage_is_removed()

    def age(self, paths: list[Path], by_s: float) -> None:
        for path in paths:
            if path.exists():
                modified = path.stat().st_mtime - by_s
                os.utime(path, (modified, modified))

    # What holds after every step

    @invariant()
    def what_is_committed_stands(self) -> None:
        committed = self.ledger.committed({unit.scope: None for unit in UNITS})
        listed = list(self.ledger.units("adversarial"))
        assert len(listed) == len(set(listed))
        assert set(listed) == set(self.stood) == {unit for unit in UNITS if unit in committed}
        for unit, (digest, data) in self.stood.items():
            if unit not in self.files:
                marker = self.ledger.marker(unit)
                assert marker.sha256 == digest
                assert self.ledger.read(marker) == data
                paths = [self.folder / unit.marker, self.folder / marker.object]
                self.files[unit] = {path: path.read_bytes() for path in paths}
            # What was read and verified once needs no more than to be the same bytes ever after.
            assert all(path.read_bytes() == seen for path, seen in self.files[unit].items())

    @invariant()
    def who_is_alive_is_what_the_store_says(self) -> None:
        seen = leases.seen(self.storage, now=time.time()) if (self.folder / "runs").is_dir() else []
        assert {run.id for run in seen if run.live} == self.alive

    def all_writers_end_their_work(self) -> None:
        for unit in UNITS:
            for writer in range(2):
                self.commits(writer, unit, writer)
        self.what_is_committed_stands()
        assert set(self.stood) == set(UNITS)


def made(unit: Unit, device: int) -> bytes:
    """What a device makes of a unit: two of them need not agree to the byte."""
    return f"{unit.path} on device {device}".encode()


def cut_off(*_: object, **__: object) -> bool:
    raise Cut


class skewed:  # noqa: N801  # reads as a context
    """A client machine whose clock is wrong."""

    def __init__(self, by_s: float) -> None:
        self.by_s, self.patch = by_s, pytest.MonkeyPatch()

    def __enter__(self) -> None:
        real = time.time
        self.patch.setattr(time, "time", lambda: real() + self.by_s)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


class InTurn:
    """Reads one after the other what the ledger reads side by side."""

    def __init__(self, readers: int) -> None:
        del readers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    map = staticmethod(map)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is lost here, and syncs and threads would cost more than all else in a step."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(markers, "ThreadPoolExecutor", InTurn)


@pytest.mark.journey
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("_quick")
def test_whatever_happens_what_is_committed_stands_once() -> None:
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
