"""Progress, speed and failures of every recorded plan, read from the store alone."""

import time
from dataclasses import dataclass

from pipeline.errors import StorageError
from pipeline.ledger import Failure, Ledger, leases
from pipeline.ledger.leases import RunRecord
from pipeline.ledger.progress import Progress, measure_progress


@dataclass(frozen=True)
class PlanStatus:
    """The status of one recorded plan.

    Attributes:
        id: The plan's id.
        dataset: Identity of its images.
        progress: Parts attacked and result files scored, with their totals.
        failures: Items that its runs gave up.
        runs: Runs of the plan, live or ended, the latest first.
    """

    id: str
    dataset: str
    progress: Progress
    failures: tuple[Failure, ...]
    runs: tuple[RunRecord, ...]

    @property
    def complete(self) -> bool:
        """Whether all parts are attacked and scored."""
        counts = self.progress
        return (counts.attacked, counts.scored, counts.shards_known) == (
            counts.to_attack,
            counts.to_score,
            counts.shards,
        )

    @property
    def images_per_s(self) -> float | None:
        """Images attacked per second, summed over the live runs; None until one has attacked an image."""
        records = [run.record for run in self.runs if run.live]
        rates = [record["images"] / record["seconds"] for record in records if record["images"] and record["seconds"]]
        return sum(rates) if rates else None

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the slowest live run ends, at its speed so far; None if a live run has not finished an item."""
        remaining = []
        for record in (run.record for run in self.runs if run.live):
            done = record["items"] - record["items_left"]
            if not done:
                return None
            remaining.append(record["seconds"] * record["items_left"] / done)
        return max(remaining, default=None)


def status(ledger: Ledger) -> list[PlanStatus]:
    """The status of every recorded plan.

    Markers are listed, not read; plans, heartbeats and failures are read.

    Raises:
        StorageError: The store failed.
    """
    runs = leases.list_runs(ledger.storage, now=_now(ledger))
    plans = []
    for key in ledger.plan_keys():
        plan = ledger.read_plan(key)
        plan_id = key.removeprefix("plans/").removesuffix(".json")
        plans.append(
            PlanStatus(
                id=plan_id,
                dataset=plan["dataset"],
                progress=measure_progress(plan, ledger),
                failures=tuple(ledger.list_failures(plan_id)),
                runs=tuple(run for run in runs if run.record.get("plan") == plan_id),
            )
        )
    return plans


def _now(ledger: Ledger) -> float:
    """The time by the store's clock; if the store is read-only, by this machine's."""
    try:
        return ledger.storage.read_clock()
    except StorageError:
        return time.time()
