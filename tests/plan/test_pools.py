from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CapacityError
from pipeline.plan.pools import Node, Pools, PoolSizes, WorkerShape, shared_nodes_notice, size_pools


@pytest.mark.parametrize(
    ("nodes", "generator", "scorer"),
    [
        ([Node(1, 0)], WorkerShape(1, 0, 0.94), WorkerShape(1, 0, 0.004)),
        ([Node(2, 0)], WorkerShape(2, 0, 0.94), WorkerShape(2, 0, 0.004)),
        ([Node(8, 1)], WorkerShape(1, 0.51, 4), WorkerShape(1, 0.49, 4)),
        ([Node(16, 4)], WorkerShape(4, 0.51, 2), WorkerShape(4, 0.49, 2)),
        ([Node(4, 4), Node(4, 0)], WorkerShape(4, 0.51, 0.5), WorkerShape(4, 0.49, 0.5)),
        ([Node(32, 8), Node(64, 8)], WorkerShape(16, 0.51, 2), WorkerShape(16, 0.49, 2)),
    ],
)
def test_auto_puts_a_generator_on_every_device_and_scorers_beside_them(
    nodes: list[Node], generator: WorkerShape, scorer: WorkerShape
) -> None:
    sizes = size_pools(Pools(), nodes, scoring=0.0)
    assert sizes == PoolSizes(generator, replace(scorer, at_first=1))


@pytest.mark.parametrize(("scoring", "at_first"), [(0.0, 1), (0.04, 1), (0.2, 4), (0.5, 8), (0.6, 8), (1.0, 8)])
def test_scorers_can_take_half_of_the_devices_that_they_share(scoring: float, at_first: int) -> None:
    assert size_pools(Pools(), [Node(32, 8)], scoring=scoring).scorer.at_first == at_first


@given(st.integers(1, 15), st.integers(1, 15))
def test_machines_hold_as_many_generators_as_they_have_cores(first: int, second: int) -> None:
    sizes = size_pools(Pools(), [Node(first, 0), Node(second, 0)], scoring=0.3)
    generators, scorers = sizes.generator, sizes.scorer
    for cores in (first, second):
        assert generators.cpus + 15 * scorers.cpus <= 1, "all scorers fit beside a core's generator"
        assert (cores + 1) * generators.cpus > cores


def test_machines_of_many_cores_are_divided() -> None:
    assert size_pools(Pools(), [Node(16, 0)], scoring=0.25) == PoolSizes(WorkerShape(6, 0, 2), WorkerShape(2, 0, 2))


@pytest.mark.parametrize(
    ("scoring", "generators", "scorers"), [(0.0, 15, 1), (0.1, 14, 2), (0.5, 8, 8), (0.9, 2, 14), (1.0, 1, 15)]
)
def test_whole_devices_are_divided_as_the_work_divides(scoring: float, generators: int, scorers: int) -> None:
    pools = Pools(gpus_per_generator=1, gpus_per_scorer=1)
    sizes = size_pools(pools, [Node(32, 8), Node(32, 8)], scoring=scoring)
    assert (sizes.generator.count, sizes.scorer.count) == (generators, scorers)


@pytest.mark.parametrize(("scoring", "scorers"), [(0.0, 1), (0.25, 2), (0.9, 2)])
def test_scorers_take_what_a_given_number_of_generators_leaves(scoring: float, scorers: int) -> None:
    sizes = size_pools(Pools(generators=6), [Node(64, 8)], scoring=scoring)
    assert (sizes.generator.count, sizes.scorer.count) == (6, scorers)


def test_without_gpus_their_settings_are_ignored() -> None:
    assert size_pools(Pools(gpus_per_generator=0.5, gpus_per_scorer=2), [Node(2, 0)], scoring=0.25) == size_pools(
        Pools(), [Node(2, 0)], scoring=0.25
    )


def test_auto_fits_workers_on_single_nodes() -> None:
    sizes = size_pools(Pools(gpus_per_generator=0.6, gpus_per_scorer=0.4), [Node(4, 1), Node(4, 1)], scoring=0.25)
    assert (sizes.generator.count, sizes.scorer.count) == (2, 1)
    sizes = size_pools(Pools(gpus_per_generator=0.2, gpus_per_scorer=0.4), [Node(4, 1)], scoring=0.25)
    assert (sizes.generator.count, sizes.scorer.count) == (3, 1)


def test_fractional_workers_share_a_gpu() -> None:
    sizes = size_pools(Pools(gpus_per_generator=0.25, gpus_per_scorer=1), [Node(16, 4)], scoring=0.25)
    assert (sizes.generator.count, sizes.scorer.count) == (12, 1)


def test_scorers_can_run_without_gpus() -> None:
    sizes = size_pools(Pools(gpus_per_scorer=0), [Node(16, 4)], scoring=0.25)
    assert (sizes.generator.count, sizes.scorer.gpus) == (4, 0)


@pytest.mark.parametrize(
    "pools",
    [
        Pools(generators=4, scorers=1),
        Pools(generators=2, scorers=1, gpus_per_generator=2),
        Pools(cpus_per_worker=16),
        Pools(generators=1, gpus_per_generator=8),
    ],
)
def test_pools_that_do_not_fit_are_refused(pools: Pools) -> None:
    with pytest.raises(CapacityError, match="ask for fewer or smaller workers"):
        size_pools(pools, [Node(16, 4)], scoring=0.25)


@given(st.lists(st.builds(Node, st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=6))
def test_both_pools_always_fit_together(nodes: list[Node]) -> None:
    sizes = size_pools(Pools(), nodes, scoring=0.25)
    generators, scorers = sizes.generator, sizes.scorer
    assert min(generators.count, scorers.count) >= 1
    assert generators.count * generators.cpus + scorers.count * scorers.cpus <= sum(node.cpus for node in nodes) + 1e-6
    assert generators.count * generators.gpus + scorers.count * scorers.gpus <= sum(node.gpus for node in nodes)


GENERATORS, SCORERS = frozenset({"gnp_generator"}), frozenset({"gnp_scorer"})


def test_each_pool_fills_its_reserved_nodes() -> None:
    nodes = [*[Node(8, 4, GENERATORS)] * 2, Node(16, 1, SCORERS), Node(64, 8)]
    expected = PoolSizes(WorkerShape(8, 1, 2, "gnp_generator"), WorkerShape(1, 1, 16, "gnp_scorer"))
    for scoring in (0.0, 0.9):
        assert size_pools(Pools(), nodes, scoring=scoring) == expected


def test_scorers_on_reserved_nodes_without_gpus_use_none() -> None:
    sizes = size_pools(Pools(gpus_per_scorer=1), [Node(8, 1, GENERATORS), Node(16, 0, SCORERS)], scoring=0.25)
    assert sizes == PoolSizes(WorkerShape(1, 1, 8, "gnp_generator"), WorkerShape(8, 0, 2, "gnp_scorer"))


@pytest.mark.parametrize("resources", [GENERATORS, SCORERS, GENERATORS | SCORERS])
def test_nodes_declared_for_only_one_pool_or_for_both_are_shared(resources: frozenset[str]) -> None:
    sizes = size_pools(Pools(), [Node(16, 4, resources)], scoring=0.25)
    assert sizes == size_pools(Pools(), [Node(16, 4)], scoring=0.25)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ([GENERATORS, SCORERS, frozenset()], ""),
        ([frozenset()], ""),
        ([GENERATORS, frozenset()], "generators and scorers share all nodes: no node declares gnp_scorer"),
        ([GENERATORS, SCORERS, GENERATORS | SCORERS], "share all nodes: 1 of 3 nodes declare both of them"),
    ],
)
def test_resources_that_reserve_no_nodes_give_a_notice(resources: list[frozenset[str]], expected: str) -> None:
    notice = shared_nodes_notice([Node(4, 0, names) for names in resources])
    assert expected in notice
    assert bool(expected) == bool(notice)


def test_a_pool_that_does_not_fit_its_reserved_nodes_is_refused() -> None:
    with pytest.raises(CapacityError, match=r"2 scorers .* 1 node with 1 GPU and .* that declare gnp_scorer; ask for"):
        size_pools(Pools(scorers=2), [Node(16, 4, GENERATORS), Node(4, 1, SCORERS)], scoring=0.25)


@pytest.mark.parametrize(
    "wrong",
    [
        {"generators": 0},
        {"scorers": -1},
        {"gpus_per_scorer": -0.5},
        {"gpus_per_scorer": 1e-9},
        {"gpus_per_generator": float("nan")},
    ],
)
def test_impossible_pools_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Pools(**wrong)
