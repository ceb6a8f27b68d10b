"""How a store stands, by the store alone: while runs go on, and after."""

import time
from dataclasses import dataclass

from pipeline.errors import StorageError
from pipeline.ledger import Failure, Ledger, leases
from pipeline.ledger.leases import Seen
from pipeline.ledger.progress import Progress, progress


@dataclass(frozen=True)
class PlanStatus:
    """How far one recorded plan is.

    Attributes:
        id: Of the plan.
        dataset: Identity of its images.
        progress: Parts attacked, files scored, of how many.
        failures: What its runs gave up.
        runs: Who is at it, or has been; the latest first.
    """

    id: str
    dataset: str
    progress: Progress
    failures: tuple[Failure, ...]
    runs: tuple[Seen, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        counts = self.progress
        return (counts.attacked, counts.scored, counts.shards_known) == (
            counts.to_attack,
            counts.to_score,
            counts.shards,
        )

    @property
    def images_per_s(self) -> float | None:
        """Images attacked a second, by the live runs together; None where there is none, or it has just begun."""
        said = [run.record for run in self.runs if run.live]
        rates = [each["images"] / each["seconds"] for each in said if each["images"] and each["seconds"]]
        return sum(rates) if rates else None

    @property
    def left_s(self) -> float | None:
        """Seconds until the slowest live run is done, at its own pace so far; None where that cannot be said."""
        left = []
        for said in (run.record for run in self.runs if run.live):
            done = said["items"] - said["items_left"]
            if not done:
                return None
            left.append(said["seconds"] * said["items_left"] / done)
        return max(left, default=None)


def status(ledger: Ledger) -> list[PlanStatus]:
    """Every recorded plan, by listings, and by reading what runs say of themselves and what they gave up.

    Raises:
        StorageError: The store failed.
    """
    seen = leases.seen(ledger.storage, now=_now(ledger))
    found = []
    for key in ledger.plans():
        plan = ledger.plan(key)
        identity = key.removeprefix("plans/").removesuffix(".json")
        found.append(
            PlanStatus(
                id=identity,
                dataset=plan["dataset"],
                progress=progress(plan, ledger),
                failures=tuple(ledger.failures(identity)),
                runs=tuple(run for run in seen if run.record.get("plan") == identity),
            )
        )
    return found


def _now(ledger: Ledger) -> float:
    """The store's clock; where the store may only be read, this machine's."""
    try:
        return ledger.storage.clock()
    except StorageError:
        return time.time()
