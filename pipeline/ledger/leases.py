"""Who is at work: runs that say so every few seconds, and the shards that they have claimed.

Two runs of one recipe can never spoil each other's results, because markers are put-if-absent; claims only keep them
from doing the same work. They are leases: a claim holds as long as its run has been heard of within `LEASE_S`, by the
store's own clock (the time at which it says that each run's record was written), so no machine's clock matters.

A claim is held until its run ends, or gives the shard up; what is complete needs none.

    runs/RUN.json                                what a run is doing; written anew every `BEAT_S`
    claims/PLAN/SOURCE/SHARD/00000000.json       which run is at a shard; the highest number holds
"""

import contextlib
import os
import platform
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import IntegrityError, MissingError, StorageError
from pipeline.storage import Storage

BEAT_S = 10.0
LEASE_S = 60.0
# What a run may be called: a name that cannot be a file's would be asked of the store for a minute.
_RUN = re.compile(r"[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True)
class Seen:
    """A run as others see it.

    Attributes:
        id: Its name.
        record: What it last said of itself: plan, state, host, pid and counts.
        age_s: How long ago, by the store's clock.
    """

    id: str
    record: Mapping[str, Any]
    age_s: float

    @property
    def live(self) -> bool:
        """Whether its claims hold."""
        return self.record.get("state") == "running" and self.age_s < LEASE_S

    @property
    def alone(self) -> bool:
        """Whether others are to wait for its end."""
        return bool(self.record.get("alone"))

    @property
    def here(self) -> bool:
        """Whether it was started on this machine."""
        return self.record.get("host") == platform.node()


def beat(storage: Storage, run: str, *, plan: str, state: str, counts: Mapping[str, Any]) -> None:
    """Says that a run is alive (`running`), or how it ended (`done`, `stopped`, `failed`).

    Raises:
        StorageError: The store failed.
    """
    said = {"plan": plan, "state": state, "host": platform.node(), "pid": os.getpid(), **counts}
    storage.put_record(f"runs/{run}.json", said, once=False)


def seen(storage: Storage, *, now: float) -> list[Seen]:
    """Every run that the store knows of, the latest first.

    Args:
        storage: The store.
        now: The time by the store's clock, as `Storage.clock` gives it.
    """
    found = []
    for stored in sorted(storage.list("runs"), key=lambda stored: -stored.modified):
        try:
            record = storage.record(stored.key)
        except (MissingError, IntegrityError):  # removed, or cut off, meanwhile: nobody is alive under that name
            continue
        name = stored.key.removeprefix("runs/").removesuffix(".json")
        found.append(Seen(name, record, now - stored.modified))
    return found


def bury(storage: Storage, run: Seen) -> bool:
    """Ends the record of a run that says it is alive, was started on this machine, and whose process is gone.

    A run that was killed is then taken over at once, rather than when its lease runs out.
    """
    pid = run.record.get("pid")
    if not (run.live and run.here) or not isinstance(pid, int) or _alive(pid):
        return False
    storage.put_record(f"runs/{run.id}.json", {**run.record, "state": "failed"}, once=False)
    return True


@contextlib.contextmanager
def alone(storage: Storage) -> Iterator[Callable[[], Seen | None]]:
    """While entered, keeps runs from beginning; yields what names another that is at work, or None.

    For whoever takes committed things back, or removes what no marker names: to be asked right before each time, and
    what is done upon it is to take less than a lease. It writes its own record and then looks, and a run that begins
    writes its record and then looks for such (`one_alone`): at least one of the two sees the other.

    Raises:
        StorageError: The store failed.
    """
    run = uuid.uuid4().hex[:12]

    def other() -> Seen | None:
        beat(storage, run, plan="", state="running", counts={"alone": True})
        now = storage.stat(f"runs/{run}.json").modified
        return next((each for each in seen(storage, now=now) if _is_other(storage, each, run)), None)

    try:
        yield other
    finally:
        storage.delete([f"runs/{run}.json"])


def one_alone(storage: Storage, run: str) -> Seen | None:
    """Somebody who must not be disturbed at the moment, for a run whose record stands."""
    now = storage.stat(f"runs/{run}.json").modified
    return next((each for each in seen(storage, now=now) if _is_other(storage, each, run) and each.alone), None)


def _is_other(storage: Storage, each: Seen, run: str) -> bool:
    return each.id != run and each.live and not bury(storage, each)


def holder(storage: Storage, place: str, run: str) -> str | None:
    """Which other live run has a shard; None where it can be claimed, or is this run's.

    Args:
        storage: The store.
        place: `PLAN/SOURCE/SHARD`.
        run: Who asks; its record must stand.

    Raises:
        StorageError: The store failed.
    """
    claims = sorted(stored.key for stored in storage.list(f"claims/{place}"))
    name = _claimant(storage, claims[-1]) if claims else ""
    return name if name and name != run and _holds(storage, name, run) else None


def claim(storage: Storage, place: str, run: str) -> str | None:
    """Claims a shard for a run; None if it is that run's now, else the live run that has it.

    Args:
        storage: The store.
        place: `PLAN/SOURCE/SHARD`.
        run: Which run; its record must stand.

    Raises:
        StorageError: The store failed.
    """
    while True:
        number = 0
        claims = sorted(stored.key for stored in storage.list(f"claims/{place}"))
        if claims:
            holder = _claimant(storage, claims[-1])
            if holder == run:
                return None
            if holder and _holds(storage, holder, run):
                return holder
            number = int(claims[-1].rpartition("/")[2].removesuffix(".json")) + 1
        # Of all that see the last holder dead, put-if-absent lets exactly one be the next.
        if storage.put_record(f"claims/{place}/{number:08d}.json", {"run": run}):
            return None


def release(storage: Storage, place: str, run: str) -> None:
    """Gives a shard back that a run holds and has given up, so that another may try it.

    Raises:
        StorageError: The store failed.
    """
    claims = sorted(stored.key for stored in storage.list(f"claims/{place}"))
    if claims and _claimant(storage, claims[-1]) == run:
        number = int(claims[-1].rpartition("/")[2].removesuffix(".json")) + 1
        storage.put_record(f"claims/{place}/{number:08d}.json", {"run": ""})


def _claimant(storage: Storage, claim: str) -> str:
    """Which run a claim is of; nobody's where it is gone or damaged, for it would hold the shard up for ever."""
    try:
        run = str(storage.record(claim).get("run"))
    except (MissingError, IntegrityError):
        return ""
    return run if _RUN.fullmatch(run) else ""


def _holds(storage: Storage, holder: str, run: str) -> bool:
    try:
        record = storage.record(f"runs/{holder}.json")
        theirs = storage.stat(f"runs/{holder}.json").modified
    except (MissingError, IntegrityError):
        return False
    try:
        ours = storage.stat(f"runs/{run}.json").modified
    except MissingError as error:  # removed under a run that lives: it is written again within seconds
        raise StorageError(f"the record of this run is gone: {error}") from error
    return Seen(holder, record, ours - theirs).live


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user, or no number of a process: its lease will tell
        return True
    return True
