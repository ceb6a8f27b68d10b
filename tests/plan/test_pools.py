from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CapacityError
from pipeline.plan.pools import Crew, Node, Pools, Sizing, half_apart, size


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([Node(1, 0)], Sizing(Crew(1, 0, 0.5), Crew(1, 0, 0.5))),
        ([Node(2, 0)], Sizing(Crew(1, 0, 1), Crew(1, 0, 1))),
        ([Node(16, 0)], Sizing(Crew(6, 0, 2), Crew(2, 0, 2))),
        ([Node(8, 1)], Sizing(Crew(1, 0.5, 4), Crew(1, 0.5, 4))),
        ([Node(16, 4)], Sizing(Crew(3, 1, 4), Crew(1, 1, 4))),
        ([Node(32, 8), Node(32, 8)], Sizing(Crew(12, 1, 4), Crew(4, 1, 4))),
    ],
)
def test_auto_fills_the_cluster(nodes: list[Node], expected: Sizing) -> None:
    assert size(Pools(), nodes, scoring=0.25) == expected


@pytest.mark.parametrize(
    ("scoring", "generators", "scorers"), [(0.0, 15, 1), (0.1, 14, 2), (0.5, 8, 8), (0.9, 2, 14), (1.0, 1, 15)]
)
def test_auto_divides_the_cluster_as_the_work_divides(scoring: float, generators: int, scorers: int) -> None:
    found = size(Pools(), [Node(32, 8), Node(32, 8)], scoring=scoring)
    assert (found.generator.count, found.scorer.count) == (generators, scorers)


@pytest.mark.parametrize(("scoring", "scorers"), [(0.0, 1), (0.25, 2), (0.9, 2)])
def test_scorers_take_what_a_given_number_of_generators_leaves(scoring: float, scorers: int) -> None:
    found = size(Pools(generators=6), [Node(64, 8)], scoring=scoring)
    assert (found.generator.count, found.scorer.count) == (6, scorers)


def test_without_devices_what_is_asked_of_them_is_passed_over() -> None:
    assert size(Pools(gpus_per_generator=0.5, gpus_per_scorer=2), [Node(2, 0)], scoring=0.25) == size(
        Pools(), [Node(2, 0)], scoring=0.25
    )


def test_auto_takes_what_fits_on_nodes_that_workers_cannot_straddle() -> None:
    found = size(Pools(gpus_per_generator=0.6, gpus_per_scorer=0.4), [Node(4, 1), Node(4, 1)], scoring=0.25)
    assert (found.generator.count, found.scorer.count) == (2, 1)
    found = size(Pools(gpus_per_generator=0.2, gpus_per_scorer=0.4), [Node(4, 1)], scoring=0.25)
    assert (found.generator.count, found.scorer.count) == (3, 1)


def test_fractions_share_a_device() -> None:
    found = size(Pools(gpus_per_generator=0.25, gpus_per_scorer=1), [Node(16, 4)], scoring=0.25)
    assert (found.generator.count, found.scorer.count) == (12, 1)


def test_scorers_may_stay_off_the_devices() -> None:
    found = size(Pools(gpus_per_scorer=0), [Node(16, 4)], scoring=0.25)
    assert (found.generator.count, found.scorer.gpus) == (4, 0)


@pytest.mark.parametrize(
    "pools",
    [
        Pools(generators=4, scorers=1),
        Pools(generators=2, scorers=1, gpus_per_generator=2),
        Pools(cpus_per_worker=16),
        Pools(generators=1, gpus_per_generator=8),
    ],
)
def test_what_does_not_fit_is_refused_before_it_would_wait_for_ever(pools: Pools) -> None:
    with pytest.raises(CapacityError, match="ask for fewer or smaller workers"):
        size(pools, [Node(16, 4)], scoring=0.25)


@given(st.lists(st.builds(Node, st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=6))
def test_both_pools_always_fit_beside_each_other(nodes: list[Node]) -> None:
    found = size(Pools(), nodes, scoring=0.25)
    generators, scorers = found.generator, found.scorer
    assert min(generators.count, scorers.count) >= 1
    assert generators.count * generators.cpus + scorers.count * scorers.cpus <= sum(node.cpus for node in nodes) + 1e-6
    assert generators.count * generators.gpus + scorers.count * scorers.gpus <= sum(node.gpus for node in nodes)


GENERATORS, SCORERS = frozenset({"gnp_generator"}), frozenset({"gnp_scorer"})


def test_each_pool_fills_the_nodes_that_are_kept_for_it() -> None:
    nodes = [*[Node(8, 4, GENERATORS)] * 2, Node(16, 1, SCORERS), Node(64, 8)]
    expected = Sizing(Crew(8, 1, 2, "gnp_generator"), Crew(1, 1, 16, "gnp_scorer"))
    for scoring in (0.0, 0.9):
        assert size(Pools(), nodes, scoring=scoring) == expected


def test_scorers_whose_nodes_have_no_device_do_without() -> None:
    found = size(Pools(gpus_per_scorer=1), [Node(8, 1, GENERATORS), Node(16, 0, SCORERS)], scoring=0.25)
    assert found == Sizing(Crew(1, 1, 8, "gnp_generator"), Crew(8, 0, 2, "gnp_scorer"))


@pytest.mark.parametrize("declares", [GENERATORS, SCORERS, GENERATORS | SCORERS])
def test_nodes_kept_for_one_pool_alone_or_for_both_are_for_either(declares: frozenset[str]) -> None:
    assert size(Pools(), [Node(16, 4, declares)], scoring=0.25) == size(Pools(), [Node(16, 4)], scoring=0.25)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ([GENERATORS, SCORERS, frozenset()], ""),
        ([frozenset()], ""),
        ([GENERATORS, frozenset()], "generators and scorers share all nodes: no node declares gnp_scorer"),
        ([GENERATORS, SCORERS, GENERATORS | SCORERS], "share all nodes: 1 of 3 nodes declare both of them"),
    ],
)
def test_who_declares_what_keeps_nothing_apart_is_told(declared: list[frozenset[str]], said: str) -> None:
    told = half_apart([Node(4, 0, each) for each in declared])
    assert said in told
    assert bool(said) == bool(told)


def test_a_pool_that_does_not_fit_its_own_nodes_is_refused() -> None:
    with pytest.raises(CapacityError, match=r"2 scorers .* 1 nodes with 1 GPUs .* that declare gnp_scorer; ask for"):
        size(Pools(scorers=2), [Node(16, 4, GENERATORS), Node(4, 1, SCORERS)], scoring=0.25)


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
