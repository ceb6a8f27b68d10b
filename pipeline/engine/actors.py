"""The Ray actors of the scheduler's workers: starting and ending them, and the calls that are out to each."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from pipeline.engine.cluster import summary, worker_environment
from pipeline.engine.state import StageName, WorkerRecord, WorkerState
from pipeline.engine.worker import ItemResult, Worker
from pipeline.ledger.progress import StageTotals
from pipeline.plan.outline import PickledPlan
from pipeline.plan.pools import WorkerShape

# How often a busy worker is asked for its totals so far; one whose items are shorter never is.
_TOTALS_EVERY_S = 2.0
# How long fetching totals may take once the worker has answered.
_TOTALS_TIMEOUT_S = 5.0
# The amount of a node's custom resource that a worker takes; any number of workers may share one.
_CUSTOM_RESOURCE = 0.0001


@dataclass(frozen=True)
class Placed:
    """A worker's process runs on this node."""

    node: str


@dataclass(frozen=True)
class Started:
    """A worker is ready for items."""


@dataclass(frozen=True)
class Died:
    """A worker's process is gone."""

    reason: str


@dataclass
class _Calls:
    """One actor and the calls that are out to it.

    Attributes:
        actor: Its handle.
        result: The call that it works on: `node`, then `load` while it starts, `run` while it is busy; None while it is
            idle.
        lifetime: A call that never returns: it fails when the worker dies.
        totals: The call for its totals so far, while one is out.
        totals_at: When its totals were last received, or its item assigned.
    """

    actor: Any
    result: Any
    lifetime: Any = None
    totals: Any = None
    totals_at: float = 0.0


class Actors:
    """The actors of one run, by worker."""

    def __init__(self, plan: PickledPlan, plan_id: str, store: str, run: str) -> None:
        self._plan_id, self._store, self._run = plan_id, store, run
        self._plan = ray.put(plan.pickled)
        # One class per stage, whose name is the process's; exporting a class costs 40 ms.
        stages: tuple[StageName, ...] = ("generator", "scorer")
        self._classes = {stage: ray.remote(type(stage.capitalize(), (Worker,), {})) for stage in stages}
        self._calls: dict[WorkerRecord, _Calls] = {}

    def start(self, worker: WorkerRecord, shape: WorkerShape) -> None:
        """Starts a worker's process."""
        options = {
            "num_cpus": shape.cpus,
            "num_gpus": shape.gpus,
            "resources": {shape.resource: _CUSTOM_RESOURCE} if shape.resource else None,
            "runtime_env": worker_environment(shape.gpus),
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 3,  # `run`, beside it `take_totals` or `stop`, and `live`
        }
        actor_class = self._classes[worker.stage].options(**options)
        actor = actor_class.remote(worker.stage, self._plan, self._plan_id, self._store, shape.threads, self._run)
        self._calls[worker] = _Calls(actor, actor.node.remote())

    def kill(self, worker: WorkerRecord) -> None:
        """Ends a worker's process at once."""
        calls = self._calls.pop(worker, None)
        if calls is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(calls.actor, no_restart=True)

    def run(self, worker: WorkerRecord) -> None:
        """Has a worker run the item that it was assigned."""
        calls = self._calls[worker]
        calls.result = calls.actor.run.remote(worker.item, worker.attempt, worker.prefetch)
        calls.totals_at = time.monotonic()

    def stop(self, worker: WorkerRecord) -> None:
        """Has a worker end its item after the unit in hand."""
        self._calls[worker].actor.stop.remote()

    def wait(self, timeout_s: float) -> Iterator[tuple[WorkerRecord, Placed | Started | ItemResult | Died]]:
        """What became of workers' calls, once at least one has ended or the time is over."""
        waiting = {calls.result or calls.lifetime: worker for worker, calls in self._calls.items()}
        if not waiting:
            time.sleep(min(timeout_s, 0.2))
            return
        ready, rest = ray.wait(list(waiting), num_returns=1, timeout=timeout_s)
        if ready and rest:  # workers of one pace end together: one wait per result would add up
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for future in ready:
            if waiting[future] in self._calls:  # what came before may have ended the worker
                yield waiting[future], self._result(waiting[future], future)

    def _result(self, worker: WorkerRecord, future: Any) -> Placed | Started | ItemResult | Died:
        try:
            result = ray.get(future)
        except ray.exceptions.RayError as error:
            return Died(summary(error))
        calls = self._calls[worker]
        calls.result = None
        if worker.state is WorkerState.PENDING:
            calls.result = calls.actor.load.remote()
            return Placed(result)
        if worker.state is WorkerState.STARTING:
            calls.lifetime = calls.actor.live.remote()
            return Started()
        assert isinstance(result, ItemResult)
        return result

    def totals(self) -> Iterator[tuple[WorkerRecord, StageTotals, int]]:
        """The totals so far and the memory held (bytes) of workers that were asked for them; waits for none."""
        now = time.monotonic()
        for worker, calls in self._calls.items():
            due = worker.state is WorkerState.BUSY and now - calls.totals_at > _TOTALS_EVERY_S
            if due and calls.totals is None:
                calls.totals = calls.actor.take_totals.remote()
        asked = {calls.totals: worker for worker, calls in self._calls.items() if calls.totals is not None}
        ready = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
        for future in ready:
            yield from self.totals_of(asked[future])

    def totals_of(self, worker: WorkerRecord) -> Iterator[tuple[WorkerRecord, StageTotals, int]]:
        """The totals that a worker was asked for; none if it was not asked, or has died since."""
        calls = self._calls[worker]
        if calls.totals is None:
            return
        future, calls.totals = calls.totals, None
        calls.totals_at = time.monotonic()
        try:
            totals, memory_bytes = ray.get(future, timeout=_TOTALS_TIMEOUT_S)
        except ray.exceptions.RayError:
            return
        yield worker, totals, memory_bytes
