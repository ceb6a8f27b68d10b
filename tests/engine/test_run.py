import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import ray
from ray.core.generated import autoscaler_pb2
from ray.experimental import internal_kv

from pipeline import engine
from pipeline.engine import cluster
from pipeline.errors import CapacityError, WeightsError
from pipeline.ledger import Ledger, leases
from pipeline.ledger.progress import Progress, Tally
from pipeline.plan.pools import Node, Pools
from pipeline.plan.resolve import pickle_plan
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import attack, make_plan, sample, tiny_job, write_recipe, write_shard

pytestmark = [
    pytest.mark.usefixtures("ray_on_four_devices"),
    pytest.mark.timeout(600),
]


def workers(ledger: Ledger, kind: str) -> dict[str, set[str]]:
    """Worker → the devices that it saw."""
    found: dict[str, set[str]] = defaultdict(set)
    for marker in ledger.read_markers(ledger.list_units(kind)):
        found[marker.facts["worker"]].add(marker.facts["visible_devices"])
    return found


def test_every_device_has_a_generator_and_scorers_are_beside_them(
    store_url: str, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    for number in range(9):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(8)])
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi", steps=40),)), store_url)
    seen: list[Progress] = []
    outcome = engine.run_plan(
        pickle_plan(planned), store_url, pools=Pools(), on_progress=lambda counts, _: seen.append(counts)
    )
    assert (outcome.items, outcome.failed) == (9, {})
    ledger = Ledger(Storage(store_url))
    generators, scorers = workers(ledger, "adversarial"), workers(ledger, "transfer")
    assert sorted(generators.values(), key=str) == [{"0"}, {"1"}, {"2"}, {"3"}]
    assert 1 <= len(scorers) <= 4
    assert len(set().union(*scorers.values())) == len(scorers), "no two on one device"
    assert (seen[-1].attacked, seen[-1].scored) == (18, 36)
    assert engine.run_plan(pickle_plan(planned), store_url, pools=Pools()).items == 0


@pytest.mark.journey
def test_parts_are_scored_while_others_of_their_item_are_attacked(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(24)])
    job = tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi", steps=300),))
    store = Storage(str(tmp_path / "store"), create=True)
    outcome = engine.run_plan(pickle_plan(make_plan(job, store.url)), store.url, pools=Pools(generators=1))
    assert (outcome.items, outcome.failed) == (1, {})
    times = {
        kind: [stored.modified for stored in store.list(f"markers/{kind}")] for kind in ("adversarial", "transfer")
    }
    assert [len(modified) for modified in times.values()] == [6, 6]
    assert min(times["transfer"]) < max(times["adversarial"])


def test_pools_that_would_wait_for_ever_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    with pytest.raises(CapacityError, match=r"4 generators .* and 1 scorer .* cannot fit on 1 node with 4 GPUs"):
        engine.run_plan(pickle_plan(planned), str(tmp_path / "store"), pools=Pools(generators=4, scorers=1))


@pytest.mark.journey
def test_of_a_thousand_items_the_one_that_always_raises_is_listed_and_all_others_are_done(
    tmp_path: Path, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    count, poison = 1001, 500
    for number in range(count):
        path = write_shard(tmp_path / "in" / f"s-{number:04d}.tar", [sample(number)])
        if number == poison:
            path.write_bytes(path.read_bytes()[:-10240])
    job = tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("i", steps=1),))
    planned = make_plan(job)
    outcome = engine.run_plan(pickle_plan(planned), str(tmp_path / "store"), pools=Pools())
    assert outcome.items == count
    ((name, reason),) = outcome.failed.items()
    assert name.startswith(f"s-{poison:04d} from tiny")
    assert "not a complete tar" in reason or "truncated" in reason
    assert not [message for message in caplog.messages if "s-0500 from tiny" in message], "reported once, by the caller"
    ledger = Ledger(Storage(str(tmp_path / "store")))
    for kind in ("original", "adversarial", "clean", "transfer"):
        assert {unit.part.shard for unit in ledger.list_units(kind)} == {
            take.shard.name for take in planned.selections if take.shard.name != f"s-{poison:04d}"
        }
    (failure,) = ledger.list_failures()
    assert (failure.item, failure.reason, failure.tries) == (name, reason, 1)
    again = engine.run_plan(pickle_plan(planned), str(tmp_path / "store"), pools=Pools())
    assert (again.items, again.listed) == (0, (failure,)), "what failed is not ground through at every run"
    retried = engine.run_plan(pickle_plan(planned), str(tmp_path / "store"), pools=Pools(), retry_failed=True)
    assert (retried.items, list(retried.failed)) == (1, [name])
    write_shard(tmp_path / "in" / f"s-{poison:04d}.tar", [sample(poison)])
    mended = engine.run_plan(pickle_plan(make_plan(job)), str(tmp_path / "store"), pools=Pools())
    assert (mended.items, mended.failed, mended.listed) == (1, {}, ()), "a mended shard is tried unasked"


def test_what_the_actors_cannot_load_is_refused_by_the_driver(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    planned, store = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint)), Storage(str(tmp_path / "store"))
    store.delete([stored.key for stored in store.list("weights")])
    with pytest.raises(WeightsError, match=r"tiny: its weights: .* no such object"):
        engine.run_plan(pickle_plan(planned), store.url, pools=Pools())


@pytest.mark.journey
def test_an_item_that_takes_too_long_is_stopped_tried_again_and_listed(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(8)])
    endless = attack("mi", name="endless", steps=10**6)
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("i"), endless)))
    outcome = engine.run_plan(
        pickle_plan(planned), str(tmp_path / "store"), pools=Pools(generators=1, scorers=1, item_minutes=0.2)
    )
    assert set(outcome.failed.values()) == {"took longer than item_minutes = 0.2"}
    ledger = Ledger(Storage(str(tmp_path / "store")))
    attacked, scored = list(ledger.list_units("adversarial")), list(ledger.list_units("transfer"))
    assert {unit.attack.split("-")[0] for unit in attacked} == {"i"}, "what was done in time is kept"
    assert len(attacked) == len(scored), "and scored"


@contextmanager
def squatter(devices: int) -> Iterator[None]:
    """Somebody else's actor on the cluster."""

    class Squatter:
        def here(self) -> None:
            pass

    actor = ray.remote(Squatter).options(num_gpus=devices).remote()
    ray.get(actor.here.remote())
    try:
        yield
    finally:
        ray.kill(actor)


@pytest.mark.journey
def test_when_there_is_no_room_for_workers_the_run_ends_with_a_reason(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    refused = pytest.raises(CapacityError, match=r"no generator could start, .* the cluster has no room for it")
    with squatter(4), refused:
        engine.run_plan(pickle_plan(planned), str(tmp_path / "store"), pools=Pools(start_minutes=0.5))
    assert engine.run_plan(pickle_plan(planned), str(tmp_path / "store"), pools=Pools()).failed == {}


@pytest.mark.journey
def test_generators_make_room_for_scorers_where_somebody_else_has_taken_theirs(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    for number in range(6):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(4)])
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    with squatter(1):  # the three generators take the rest of the four
        outcome = engine.run_plan(pickle_plan(planned), str(tmp_path / "store"), pools=Pools(start_minutes=0.5))
    assert (outcome.items, outcome.failed, outcome.incomplete) == (6, {}, 0)


@pytest.mark.journey
@pytest.mark.parametrize("places", [1, 2])
def test_two_runs_that_fill_a_cluster_and_fail_on_the_same_shards_both_end(
    places: int, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    for number in range(4):
        path = write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(4)])
        if number < 2:
            path.write_bytes(path.read_bytes()[:-10240])
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    # Somebody else has two devices and one of four cores: neither run can have a generator and a scorer at once.
    pools = Pools(generators=1, scorers=1, cpus_per_worker=3 - places, start_minutes=2)
    ended = list[engine.Outcome]()

    def run() -> None:
        ended.append(engine.run_plan(pickle_plan(planned), str(tmp_path / "store"), pools=pools))

    with squatter(2):
        both = [threading.Thread(target=run, daemon=True) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join(300)
    assert [sorted(name[:3] for name in outcome.failed) for outcome in ended] == [["s-0", "s-1"]] * 2
    ledger = Ledger(Storage(str(tmp_path / "store")))
    assert {unit.part.shard for unit in ledger.list_units("transfer")} == {"s-2", "s-3"}


@pytest.mark.journey
def test_idle_workers_that_die_are_no_failure_of_an_item(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(4)])
    slow = tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi", steps=3000),))
    planned, done, killed = make_plan(slow), threading.Event(), set[int]()

    ledger = Ledger(Storage(str(tmp_path / "store"), create=True))

    def kill_idle_scorers() -> None:
        while not done.wait(0.1) and len(killed) < engine.ATTEMPTS and not list(ledger.list_units("adversarial")):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    # A scorer that waits for its first item is called by its class alone.
                    if process.name() == "ray::Scorer" and process.pid not in killed:
                        killed.add(process.pid)
                        process.kill()

    killer = threading.Thread(target=kill_idle_scorers)
    killer.start()
    try:
        outcome = engine.run_plan(pickle_plan(planned), str(tmp_path / "store"), pools=Pools(generators=1, scorers=3))
    finally:
        done.set()
        killer.join()
    assert killed
    assert (outcome.failed, outcome.incomplete) == ({}, 0)


@pytest.mark.journey
def test_a_run_that_is_told_to_stop_ends_and_the_next_one_goes_on(tmp_path: Path, tiny_checkpoint: Path) -> None:
    for number in range(4):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(8)])
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi", steps=80),)))
    stop = threading.Event()

    def stop_at_the_first_part(counts: Progress, _: Tally) -> None:
        if counts.attacked:
            stop.set()

    outcome = engine.run_plan(
        pickle_plan(planned),
        str(tmp_path / "store"),
        pools=Pools(generators=1, scorers=1),
        stop=stop,
        on_progress=stop_at_the_first_part,
    )
    assert (outcome.stopped, outcome.failed) == (True, {})
    ledger = Ledger(Storage(str(tmp_path / "store")))
    (seen,) = leases.list_runs(ledger.storage, now=ledger.storage.read_clock())
    assert seen.record["state"] == "stopped"
    assert 0 < len(list(ledger.list_units("adversarial"))) < 8
    again = engine.run_plan(pickle_plan(planned), str(tmp_path / "store"), pools=Pools())
    assert (again.stopped, again.failed) == (False, {})
    assert len(list(ledger.list_units("transfer"))) == 8


CLUSTER = """
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
code = subprocess.run([*sys.argv[1:], "--address", cluster.address]).returncode
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.journey
def test_a_cluster_of_two_nodes_runs_the_same_recipe(tmp_path: Path, tiny_checkpoint: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(8)])
    recipe = write_recipe(tmp_path, tiny_checkpoint)
    store = tmp_path / "store"
    command = [sys.executable, "-m", "jobs", "generate", str(recipe), "--store", str(store)]
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "done: 2 items" in done.stdout
    ledger = Ledger(Storage(str(store)))
    assert workers(ledger, "adversarial").keys().isdisjoint(workers(ledger, "transfer").keys())


def test_what_an_autoscaler_may_start_counts_as_there() -> None:
    """As Ray's autoscaler leaves it where all can read: groups of nodes, and how many of each there may be."""
    live = cluster.connect(None)
    group = autoscaler_pb2.NodeGroupConfig
    head = group(name="head", max_count=1, resources={"memory": 8_000_000_000})
    generators = group(name="generators", max_count=3, resources={"CPU": 8, "GPU": 1, "gnp_generator": 1})
    scorers = group(name="scorers", max_count=1, resources={"CPU": 4, "gnp_scorer": 1})

    def told(*groups: autoscaler_pb2.NodeGroupConfig) -> None:
        said = autoscaler_pb2.ClusterConfig(node_group_configs=groups).SerializeToString()
        place = ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE
        internal_kv._internal_kv_put(ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, said, namespace=place)

    try:
        told(head, generators, scorers)
        both = frozenset({"gnp_generator"}), frozenset({"gnp_scorer"})
        assert cluster.connect(None) == [*[Node(8, 1, both[0])] * 3, Node(4, 0, both[1])]
        told(head, group(name="any number", max_count=-1, resources={"CPU": 8}))
        assert cluster.connect(None) == live, "without a limit, what is there counts"
    finally:
        told()
    assert cluster.connect(None) == live
