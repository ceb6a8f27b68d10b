"""Run records and shard leases: heartbeats of live runs, and which run has claimed which shard.

    runs/RUN.json                              plan, state, host, pid, counts of a run; rewritten every `HEARTBEAT_S`
    claims/PLAN/SOURCE/SHARD/00000000.json     the run that claimed a shard; the highest number counts

Two runs of one recipe can never spoil each other's results, because markers are put-if-absent; claims only keep them
from doing the same work. A claim is a lease: it holds while the last heartbeat of its run is younger than `LEASE_S`.
Ages are differences of times that the store itself gives to records, so the clocks of machines do not matter.

A run holds a claim until it ends or releases the shard; a complete shard needs no claim.
"""

import contextlib
import os
import platform
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.errors import IntegrityError, MissingError, StorageError
from pipeline.storage import Storage

HEARTBEAT_S = 10.0
LEASE_S = 60.0
# Ids of runs. Another name in a damaged claim may be no key, and the store would be retried for a minute.
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True)
class RunRecord:
    """A run's last heartbeat.

    Attributes:
        id: The run's id.
        record: Plan, state, host, pid and counts.
        age_s: Age of the heartbeat, by the store's clock.
    """

    id: str
    record: Mapping[str, Any]
    age_s: float

    @property
    def live(self) -> bool:
        """Whether its claims hold."""
        return self.record.get("state") == "running" and self.age_s < LEASE_S

    @property
    def exclusive(self) -> bool:
        """Whether new runs have to wait for its end."""
        return bool(self.record.get("alone"))

    @property
    def on_this_machine(self) -> bool:
        """Whether it was started on this machine."""
        return self.record.get("host") == platform.node()


def write_heartbeat(storage: Storage, run: str, *, plan: str, state: str, counts: Mapping[str, Any]) -> None:
    """Records that a run is alive (`running`), or how it ended (`done`, `stopped`, `failed`).

    Raises:
        StorageError: The store failed.
    """
    record = {"plan": plan, "state": state, "host": platform.node(), "pid": os.getpid(), **counts}
    storage.put_record(_run_key(run), record, if_absent=False)


def list_runs(storage: Storage, *, now: float) -> list[RunRecord]:
    """All run records, the latest first.

    Args:
        storage: The store.
        now: The time by the store's clock, as `Storage.read_clock` returns it.
    """
    runs = []
    for stored in sorted(storage.list("runs"), key=lambda stored: -stored.modified):
        try:
            record = storage.get_record(stored.key)
        except (MissingError, IntegrityError):  # removed meanwhile, or damaged: no live run has this id
            continue
        name = stored.key.removeprefix("runs/").removesuffix(".json")
        runs.append(RunRecord(name, record, now - stored.modified))
    return runs


def mark_failed_if_process_is_gone(storage: Storage, run: RunRecord) -> bool:
    """Marks a live run that was started on this machine as failed if its process is gone; returns whether it did.

    The claims of a killed run are then free at once, not only when its lease runs out.
    """
    pid = run.record.get("pid")
    if not (run.live and run.on_this_machine) or not isinstance(pid, int) or _process_exists(pid):
        return False
    storage.put_record(_run_key(run.id), {**run.record, "state": "failed"}, if_absent=False)
    return True


@contextlib.contextmanager
def exclusive_access(storage: Storage) -> Iterator[Callable[[], RunRecord | None]]:
    """Keeps new runs from beginning while entered.

    For callers that revoke commits or remove objects. They call the yielded function right before each batch, which
    has to take less time than a lease: it renews this record, then returns another live run, or None.

    It writes before it looks, and so does a run that begins (`find_exclusive_run`): at least one of the two finds the
    other.

    Raises:
        StorageError: The store failed.
    """
    run = uuid.uuid4().hex[:12]

    def renew_and_find_other() -> RunRecord | None:
        write_heartbeat(storage, run, plan="", state="running", counts={"alone": True})
        return next(mark_dead_and_yield_live(storage, run), None)

    try:
        yield renew_and_find_other
    finally:
        storage.delete([_run_key(run)])


def find_exclusive_run(storage: Storage, run: str) -> RunRecord | None:
    """A live run with exclusive access, which a run whose record is written has to wait for; None if there is none."""
    return next((other for other in mark_dead_and_yield_live(storage, run) if other.exclusive), None)


def mark_dead_and_yield_live(storage: Storage, run: str) -> Iterator[RunRecord]:
    """Live runs other than `run`, the latest first; those whose process is gone are marked as failed on the way."""
    for other in list_runs(storage, now=storage.stat(_run_key(run)).modified):
        if other.id != run and other.live and not mark_failed_if_process_is_gone(storage, other):
            yield other


def other_holder(storage: Storage, shard_path: str, run: str) -> str | None:
    """The other live run that holds a shard; None where this run holds it or can claim it.

    Args:
        storage: The store.
        shard_path: `PLAN/SOURCE/SHARD`.
        run: Id of this run; its record must be written.

    Raises:
        StorageError: The store failed.
    """
    newest = _newest_claim(storage, shard_path)
    if newest is None or newest.run in ("", run):
        return None
    return newest.run if _is_live(storage, newest.run, asked_by=run) else None


def claim(storage: Storage, shard_path: str, run: str) -> str | None:
    """Claims a shard for a run; returns None on success, otherwise the live run that holds it.

    Args:
        storage: The store.
        shard_path: `PLAN/SOURCE/SHARD`.
        run: Id of this run; its record must be written.

    Raises:
        StorageError: The store failed.
    """
    while True:
        newest = _newest_claim(storage, shard_path)
        if newest is not None and newest.run == run:
            return None
        if newest is not None and newest.run and _is_live(storage, newest.run, asked_by=run):
            return newest.run
        # Of all that find the last holder dead, put-if-absent lets exactly one be the next.
        if _put_next_claim(storage, shard_path, newest, run):
            return None


def release(storage: Storage, shard_path: str, run: str) -> None:
    """Releases a shard that a run holds and gives up, so that another run can claim it.

    Raises:
        StorageError: The store failed.
    """
    newest = _newest_claim(storage, shard_path)
    if newest is not None and newest.run == run:
        _put_next_claim(storage, shard_path, newest, "")


class _Claim(NamedTuple):
    """A claim's key and run; the run is "" where the claim was released or is damaged, lest it block the shard."""

    key: str
    run: str


def _newest_claim(storage: Storage, shard_path: str) -> _Claim | None:
    key = max((stored.key for stored in storage.list(f"claims/{shard_path}")), default=None)
    if key is None:
        return None
    try:
        run = str(storage.get_record(key).get("run"))
    except (MissingError, IntegrityError):
        run = ""
    return _Claim(key, run if _RUN_ID.fullmatch(run) else "")


def _put_next_claim(storage: Storage, shard_path: str, newest: _Claim | None, run: str) -> bool:
    """Writes the claim that follows the newest one; false if another run was faster."""
    number = 0 if newest is None else int(newest.key.rpartition("/")[2].removesuffix(".json")) + 1
    return storage.put_record(f"claims/{shard_path}/{number:08d}.json", {"run": run})


def _is_live(storage: Storage, run: str, *, asked_by: str) -> bool:
    """Whether a run is live, at the time of the asking run's last heartbeat."""
    try:
        record = storage.get_record(_run_key(run))
        modified = storage.stat(_run_key(run)).modified
    except (MissingError, IntegrityError):
        return False
    try:
        now = storage.stat(_run_key(asked_by)).modified
    except MissingError as error:  # removed while its run is live: the next heartbeat writes it again
        raise StorageError(f"the record of this run is gone: {error}") from error
    return RunRecord(run, record, now - modified).live


def _run_key(run: str) -> str:
    return f"runs/{run}.json"


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's, or not a pid: its lease decides
        return True
    return True
