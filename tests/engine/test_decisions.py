"""What the scheduler decides, on states made by hand: no Ray, no store."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from pipeline.data.sample import ShardFile
from pipeline.engine import decisions
from pipeline.engine.decisions import IDLE_S, START_TRIES, Assignment
from pipeline.engine.state import Pool, SchedulerState, StageName, WorkerRecord, WorkerState
from pipeline.errors import (
    CapacityError,
    IntegrityError,
    MissingError,
    RecipeError,
    SampleError,
    ShardError,
    StorageError,
    WeightsError,
)
from pipeline.ledger.progress import StageTotals
from pipeline.plan.outline import Item, ShardSelection
from pipeline.plan.pools import WorkerShape

NOW = 1000.0


def item(number: int, source: str = "source") -> Item:
    name = f"s-{number}"
    return Item(ShardSelection(ShardFile(f"in/{name}.tar", name, 1, "v"), None), source)


def worker(stage: StageName = "generator", node: str = "", *, since: float = NOW) -> WorkerRecord:
    """A worker that has started on a node, or that waits for its place where none is named."""
    record = WorkerRecord(stage, since)
    if node:
        record.placed(node, since)
        record.started(since)
    return record


def busy(work: Item, stage: StageName = "generator", node: str = "n", prefetch: Item | None = None) -> WorkerRecord:
    record = worker(stage, node)
    record.assigned(work, prefetch, attempt=1, now=NOW)
    return record


def state(
    *,
    generators: Sequence[WorkerRecord] = (),
    scorers: Sequence[WorkerRecord] = (),
    queue: Sequence[Item] = (),
) -> SchedulerState:
    """Pools of at most four generators and one scorer; the queue is the generators'."""
    return SchedulerState(
        Pool("generator", WorkerShape(4, 1.0, 1.0), NOW, list(generators), deque(queue)),
        Pool("scorer", WorkerShape(1, 1.0, 1.0), NOW, list(scorers)),
    )


def apply(schedule: SchedulerState, assignment: Assignment | None) -> None:
    """Carries out an assignment, as the scheduler does."""
    assert assignment is not None
    schedule.generators.take(assignment.item)
    if assignment.prefetch is not None:
        schedule.generators.take(assignment.prefetch)
    assignment.worker.assigned(assignment.item, assignment.prefetch, attempt=1, now=NOW)


def test_as_many_workers_as_items_are_started_and_no_more_than_the_pool_holds() -> None:
    few, many = state(queue=[item(0), item(1)]), state(queue=[item(number) for number in range(9)])
    assert decisions.to_start(few, few.generators, NOW) == 2
    assert decisions.to_start(many, many.generators, NOW) == 4
    many.generators.workers.append(worker())
    assert decisions.to_start(many, many.scorers, NOW) == 0, "a scorer might take the generator's place"
    many.generators.workers[0].placed("n", NOW)
    assert decisions.to_start(many, many.scorers, NOW) == 1, "its models load while the generator's do"


def test_more_scorers_start_where_scoring_stays_behind() -> None:
    schedule = state(generators=[busy(item(0))], scorers=[worker("scorer", "n")], queue=[item(1)])
    scorers = schedule.scorers
    scorers.shape = WorkerShape(4, 0.0, 0.0, at_first=1)
    scorers.queue.extend([item(20), item(21)])
    assert not decisions.has_fallen_behind(schedule), "they are scored in their turn"
    scorers.queue.append(item(22))
    assert decisions.has_fallen_behind(schedule)
    scorers.behind_since = NOW
    assert decisions.to_start(schedule, scorers, NOW + 9) == 0, "not for a moment"
    assert decisions.to_start(schedule, scorers, NOW + 11) == 1
    scorers.workers.append(worker("scorer"))
    assert not decisions.has_fallen_behind(schedule), "three wait for two"
    schedule.generators.workers[0].finished(NOW)
    schedule.generators.queue.clear()
    assert decisions.has_fallen_behind(schedule), "nothing else is left to do"


def test_scorers_leave_pending_generators_their_places() -> None:
    schedule = state(generators=[worker(node="n"), worker()], queue=[item(0), item(1)])
    schedule.scorers.shape = WorkerShape(4, 0.0, 0.0)
    assert decisions.to_start(schedule, schedule.scorers, NOW) == 1
    schedule.scorers.workers += [worker("scorer", "n"), worker("scorer", "n", since=NOW - 1)]
    assert decisions.to_release(schedule, schedule.scorers, NOW) == [schedule.scorers.workers[0]]
    schedule.scorers.shape = WorkerShape(4, 0.0, 0.0, "gnp_scorer")
    assert decisions.to_release(schedule, schedule.scorers, NOW) == [], "on nodes of their own they are in nobody's way"
    schedule.scorers.shape = WorkerShape(4, 0.0, 0.0)
    schedule.generators.workers[1].placed("n", NOW)
    assert decisions.to_release(schedule, schedule.scorers, NOW) == []


def test_of_workers_that_are_not_needed_those_go_first_that_have_cost_least() -> None:
    idle, starting, pending = worker(node="n", since=NOW - 99), WorkerRecord("generator", NOW), worker()
    starting.placed("n", NOW)
    schedule = state(generators=[idle, starting, pending])
    assert decisions.to_release(schedule, schedule.generators, NOW) == [pending, starting, idle]


def test_starts_that_fail_are_repeated_after_a_pause_and_end_the_run_at_last() -> None:
    schedule = state(queue=[item(0)])
    pool = schedule.generators
    assert decisions.lacks_worker(schedule, pool, NOW)
    assert decisions.start_failure(pool, NOW + 60, limit_s=61) is None
    assert decisions.start_failure(pool, NOW + 62, limit_s=61) == (
        "no generator could start, in 0 tries and 1.0 minutes: the cluster has no room for it"
    )
    pool.failed_starts, pool.start_error, pool.start_not_before = START_TRIES, "no device", NOW + 1
    assert decisions.to_start(schedule, pool, NOW) == 0
    assert decisions.to_start(schedule, pool, NOW + 1) == 1
    assert decisions.start_failure(pool, NOW, limit_s=61) == (
        "no generator could start, in 5 tries and 0.0 minutes: no device"
    )
    assert [decisions.backoff_s(tries) for tries in (1, 2, 3, 10)] == [2, 4, 8, 30]


def test_an_item_that_failed_on_a_node_goes_to_another_node_where_there_is_one() -> None:
    bad, good = worker(node="bad"), worker(node="good")
    first, second = item(0), item(1)
    schedule = state(generators=[bad, good], queue=[first])
    assert schedule.count_failed_try("generator", first, "bad") == 1
    schedule.generators.queue.append(second)
    apply(schedule, decisions.next_assignment(schedule, schedule.generators))
    assert (bad.item, good.item) == (second, None)
    apply(schedule, decisions.next_assignment(schedule, schedule.generators))
    assert good.item == first
    schedule.generators.queue.append(good.finished(NOW))
    schedule.count_failed_try("generator", first, "good")
    bad.finished(NOW)
    apply(schedule, decisions.next_assignment(schedule, schedule.generators))
    assert bad.item == first, "it has failed on every node"


def test_items_that_failed_on_a_node_do_not_keep_its_worker_from_those_behind_them() -> None:
    items = [item(number) for number in range(203)]
    idle, elsewhere = worker(node="bad"), busy(item(300), node="good")
    schedule = state(generators=[idle, elsewhere], queue=items)
    for failed in items[:200]:
        schedule.count_failed_try("generator", failed, "bad")
    assignment = decisions.next_assignment(schedule, schedule.generators)
    assert assignment == Assignment(idle, items[200], items[201]), "and it prefetches the one behind its own"


def test_an_idle_worker_is_kept_for_a_while_unless_the_other_stage_needs_its_place() -> None:
    fresh, old, starting = worker(node="n"), worker(node="n", since=NOW - IDLE_S - 1), worker()
    schedule = state(generators=[fresh, old, starting])
    released = decisions.to_release(schedule, schedule.generators, NOW)
    assert released == [starting, old], "one was idle for long, and one that starts is not needed"
    schedule.scorers.workers.append(worker("scorer"))
    assert set(decisions.to_release(schedule, schedule.generators, NOW)) == {fresh, old, starting}


def test_workers_that_there_is_work_for_are_not_released() -> None:
    schedule = state(generators=[busy(item(0)), worker(node="n", since=NOW - 60)], queue=[item(1)])
    assert decisions.to_release(schedule, schedule.generators, NOW) == []


def test_nothing_is_assigned_on_a_draining_node() -> None:
    schedule = state(generators=[worker(node="going")], queue=[item(0)])
    schedule.draining = {"going"}
    assert decisions.next_assignment(schedule, schedule.generators) is None


def test_a_generator_prefetches_the_next_item_and_an_idle_one_takes_it_instead() -> None:
    one, two = worker(node="n"), worker(node="n")
    items = [item(number) for number in range(5)]
    schedule = state(generators=[one, two], queue=items[:3])
    pool = schedule.generators
    apply(schedule, decisions.next_assignment(schedule, pool))
    apply(schedule, decisions.next_assignment(schedule, pool))
    assert (one.item, one.prefetch) == (items[0], items[1])
    assert (two.item, two.prefetch) == (items[2], None)
    assert (pool.waiting, list(pool.queue)) == (1, [])
    two.finished(NOW)
    apply(schedule, decisions.next_assignment(schedule, pool))
    assert (two.item, one.prefetch, pool.waiting) == (items[1], None, 0), "an idle worker begins it again at once"
    one.finished(NOW)
    pool.queue.extend(items[3:])
    apply(schedule, decisions.next_assignment(schedule, pool))
    assert (one.item, one.prefetch) == (items[3], items[4])
    assert pool.remove(one) == items[3]
    assert list(pool.queue) == [items[4]], "what was only being prefetched counts as no try"


def test_what_may_kill_workers_or_waits_for_originals_is_not_prefetched() -> None:
    def prefetched(work: Item, queued: Item, *, failed: str = "", suspect: str = "", idle: int = 1) -> Item | None:
        schedule = state(generators=[worker(node="n") for _ in range(idle)], queue=[work, queued])
        if failed:
            schedule.tries["generator", failed] = 1
        schedule.suspects = {suspect}
        assignment = decisions.next_assignment(schedule, schedule.generators)
        assert assignment is not None
        assert assignment.item == work
        return assignment.prefetch

    first, second = item(0), item(1)
    assert prefetched(first, second) == second
    assert prefetched(first, second, idle=2) is None, "another worker is idle"
    assert prefetched(first, second, failed=first.name) is None, "an item that failed runs alone"
    assert prefetched(first, second, failed=second.name) is None
    assert prefetched(first, second, suspect=second.name) is None, "it may have been what killed a worker"
    assert prefetched(first, replace(first, source="another")) is None, "its originals are being made"


def test_scorers_prefetch_nothing() -> None:
    schedule = state(scorers=[worker("scorer", "n")])
    schedule.scorers.queue.extend([item(0), item(1)])
    assert decisions.next_assignment(schedule, schedule.scorers) == Assignment(
        schedule.scorers.workers[0], item(0), None
    )


def test_only_busy_workers_can_be_overdue() -> None:
    late = busy(item(0))
    schedule = state(generators=[late, worker(node="n", since=NOW - 100)])
    assert decisions.overdue(schedule, NOW + 5, limit_s=10) == []
    assert decisions.overdue(schedule, NOW + 11, limit_s=10) == [late]


def test_an_item_is_given_up_at_its_third_failure_or_at_the_first_that_will_last() -> None:
    assert [decisions.gives_up(tries, lasting=False) for tries in (1, 2, 3)] == [False, False, True]
    assert decisions.gives_up(1, lasting=True)
    lasting = [ShardError(""), SampleError(""), WeightsError(""), RecipeError(""), MissingError("in/s-0.tar: no such")]
    assert all(decisions.is_lasting(error, item(0)) for error in lasting)
    passing = [
        StorageError("in/s-0.tar: 503"),
        IntegrityError(""),
        CapacityError(""),
        MissingError("store/part: no such"),
    ]
    assert not any(decisions.is_lasting(error, item(0)) for error in [*passing, FloatingPointError(), MemoryError()])


def test_a_store_that_fails_again_and_again_with_nothing_done_ends_the_run() -> None:
    schedule = state()
    schedule.store_failures = 2 * 5 + 4
    assert not decisions.store_keeps_failing(schedule)
    schedule.store_failures += 1
    assert decisions.store_keeps_failing(schedule)


def test_a_worker_s_states_follow_the_drawing() -> None:
    record = worker()
    assert (record.state, record.node) == (WorkerState.PENDING, "")
    record.placed("n", NOW)
    assert (record.state, record.node, record.has_started) == (WorkerState.STARTING, "n", False)
    record.started(NOW)
    record.assigned(item(0), item(1), attempt=2, now=NOW + 1)
    assert (record.state, record.item, record.attempt, record.since) == (WorkerState.BUSY, item(0), 2, NOW + 1)
    assert record.finished(NOW + 2) == item(0)
    assert (record.state, record.item, record.prefetch) == (WorkerState.IDLE, None, item(1))


def committed(work: Item, units: int) -> WorkerRecord:
    """A generator that works on an item and has reported so many committed units of it."""
    record = busy(work)
    record.totals = StageTotals(parts=units)
    return record


def test_an_idle_scorer_scores_what_is_committed_of_an_item_that_is_still_attacked() -> None:
    few, many, none = committed(item(0), 1), committed(item(1), 3), busy(item(2))
    scorer = worker("scorer", "n")
    schedule = state(generators=[few, many, none], scorers=[scorer])
    assert decisions.next_early_scoring(schedule) == (scorer, many)
    many.handed_over = 3
    assert decisions.next_early_scoring(schedule) == (scorer, few)
    few.handed_over = 1
    assert decisions.next_early_scoring(schedule) is None, "until a generator has committed more"


def test_originals_are_scored_before_the_first_attack_is_done() -> None:
    generator, scorer = busy(item(0)), worker("scorer", "n")
    schedule = state(generators=[generator], scorers=[scorer])
    assert decisions.next_early_scoring(schedule) is None
    generator.totals = StageTotals(originals=1)
    assert decisions.next_early_scoring(schedule) == (scorer, generator)


def test_an_item_is_scored_by_one_scorer_at_a_time() -> None:
    generator, early, idle = committed(item(0), 5), busy(item(0), "scorer"), worker("scorer", "n")
    schedule = state(generators=[generator], scorers=[early, idle])
    assert decisions.next_early_scoring(schedule) is None
    schedule.scorers.queue.extend([item(0), item(1)])  # its generator is done with it
    assert decisions.next_assignment(schedule, schedule.scorers) == Assignment(idle, item(1), None)
    early.finished(NOW)
    assert decisions.next_assignment(schedule, schedule.scorers) == Assignment(early, item(0), None)


def test_an_item_whose_early_scoring_fails_again_and_again_waits_for_its_generator() -> None:
    schedule = state(generators=[committed(item(0), 5)], scorers=[worker("scorer", "n")])
    for _ in range(decisions.ATTEMPTS):
        assert decisions.next_early_scoring(schedule) is not None
        schedule.early_failures[item(0).name] += 1
    assert decisions.next_early_scoring(schedule) is None
