"""Sizes of the worker pools on a cluster: how many workers of each kind, and the resources of each; without Ray."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.errors import CapacityError
from pipeline.models.settings import require_setting


@dataclass(frozen=True)
class Pools:
    """`[engine]`: the number of workers of each kind, and the resources of each.

    Attributes:
        generators: Workers that attack; `auto` puts one on every device (GPU, or core where there is none).
        scorers: Workers that score; `auto` puts them beside the generators, on the same devices, so that none is idle
            while either kind has work. As many start as scoring needs, by the time that a gradient of each source and
            a prediction of each target took before the run; more where scoring falls behind.
        gpus_per_generator: GPUs of a generator; fractions share a device. Ignored where there is none. Where this or
            any other number of workers, GPUs or cores is given, generators and scorers no longer share devices, which
            are divided by the work; it then is 1 by default, or ½ where there is one GPU only.
        gpus_per_scorer: GPUs of a scorer, likewise.
        cpus_per_worker: Cores, and threads, of a worker; by default the cores that there are, shared out.
        item_minutes: An item (a shard, or some of its parts) that takes longer is stopped and counts as a failed try.
        start_minutes: The run ends with an error when no worker of a kind could start for this long, or when trying to
            load the models took longer.
    """

    generators: int | Literal["auto"] = "auto"
    scorers: int | Literal["auto"] = "auto"
    gpus_per_generator: float | None = None
    gpus_per_scorer: float | None = None
    cpus_per_worker: int | None = None
    item_minutes: float = 720
    start_minutes: float = 20

    def __post_init__(self) -> None:
        for name in ("generators", "scorers", "cpus_per_worker"):
            count = getattr(self, name)
            require_setting(not isinstance(count, int) or count >= 1, name, count, "must be at least 1")
        for name in ("gpus_per_generator", "gpus_per_scorer"):
            gpus = getattr(self, name)
            is_valid = gpus is None or gpus == 0 or 0.01 <= gpus < math.inf
            require_setting(is_valid, name, gpus, "must be 0, or a number from 0.01")
        for name in ("item_minutes", "start_minutes"):
            minutes = getattr(self, name)
            require_setting(0 < minutes < math.inf, name, minutes, "must be a positive number")


# The shares of a device of a generator and a scorer beside each other. Two generators never fit on one GPU; nor more
# generators on a machine than it has cores, at most 15. Scorers on a core never leave too little for a generator.
_GPU_SHARES = 0.51, 0.49
_CORE_SHARES = 0.94, 0.004
_MOST_SHARED_CORES = 15

# Where a cluster's nodes declare one of these custom resources, workers of that kind start only on those nodes.
RESOURCES = {"generator": "gnp_generator", "scorer": "gnp_scorer"}


@dataclass(frozen=True)
class Node:
    """The resources of one machine of the cluster.

    Attributes:
        cpus: Cores.
        gpus: GPUs.
        resources: The names in `RESOURCES` that it declares.
    """

    cpus: float
    gpus: float
    resources: frozenset[str] = frozenset()


@dataclass(frozen=True)
class WorkerShape:
    """The number of workers of one kind, and the resources of each.

    Attributes:
        count: Number of workers.
        gpus: GPUs of a worker.
        cpus: Cores of a worker; below 1 where workers outnumber cores.
        resource: The custom resource of the only nodes that they may start on; empty for all nodes.
        at_first: Of scorers: how many there are unless scoring falls behind; None: all.
    """

    count: int
    gpus: float
    cpus: float
    resource: str = ""
    at_first: int | None = None

    @property
    def threads(self) -> int:
        """Threads of a worker."""
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class PoolSizes:
    """Both pools with every `auto` settled."""

    generator: WorkerShape
    scorer: WorkerShape


def size_pools(pools: Pools, nodes: Sequence[Node], *, scoring: float) -> PoolSizes:
    """Settles the pools' sizes on a cluster, so that both fit at the same time and neither can starve the other.

    Where the cluster has no GPU at all, the pools' settings of GPUs are ignored: the same recipe runs on a laptop.
    Where it reserves nodes for generators and other nodes for scorers, each pool fills its own.

    Args:
        pools: The recipe's settings.
        nodes: The cluster's nodes.
        scoring: The share of the work that is scoring, in [0, 1].

    Raises:
        CapacityError: The pools do not fit on the nodes.
    """
    if sum(node.cpus for node in nodes) < 1:
        raise CapacityError("the cluster declares no CPU; start Ray with at least one")
    if not has_reserved_nodes(nodes):
        return _size_on_shared_devices(pools, nodes, scoring) or _size_on_shared_nodes(pools, nodes, scoring)
    reserved = {stage: [node for node in nodes if name in node.resources] for stage, name in RESOURCES.items()}
    cpus = pools.cpus_per_worker
    return PoolSizes(
        _size_on_reserved_nodes("generator", pools.generators, pools.gpus_per_generator, cpus, reserved["generator"]),
        _size_on_reserved_nodes("scorer", pools.scorers, pools.gpus_per_scorer, cpus, reserved["scorer"]),
    )


def has_reserved_nodes(nodes: Sequence[Node]) -> bool:
    """Whether the two kinds of workers have separate nodes: some declared for each kind, and none for both."""
    declared = {node.resources for node in nodes if node.resources}
    return declared == {frozenset({name}) for name in RESOURCES.values()}


def shared_nodes_notice(nodes: Sequence[Node]) -> str:
    """Why nodes are shared by both kinds of workers although some declare a resource; empty if nothing is amiss."""
    if has_reserved_nodes(nodes) or not any(node.resources for node in nodes):
        return ""
    both = sum(len(node.resources) > 1 for node in nodes)
    missing = sorted(set(RESOURCES.values()).difference(*(node.resources for node in nodes)))
    why = f"no node declares {missing[0]}" if missing else f"{both} of {len(nodes)} nodes declare both of them"
    return f"generators and scorers share all nodes: {why} ({' and '.join(sorted(RESOURCES.values()))} keep them apart)"


def _size_on_reserved_nodes(
    stage: str, count: int | Literal["auto"], gpus: float | None, cpus: int | None, nodes: Sequence[Node]
) -> WorkerShape:
    """The workers of one kind on nodes that only they use."""
    worker_gpus = 0.0 if not any(node.gpus for node in nodes) else 1.0 if gpus is None else gpus
    most_cpus = cpus or _default_cpus(nodes)
    slots = _count_slots(nodes, "gpus", worker_gpus) if worker_gpus else _count_slots(nodes, "cpus", most_cpus)
    workers = max(1, slots) if count == "auto" else count
    fair_cpus = sum(node.cpus for node in nodes) / workers
    for worker_cpus in _cpu_candidates(cpus, most_cpus, worker_gpus, fair_cpus):
        if _all_fit([(worker_gpus, worker_cpus)] * workers, nodes):
            return WorkerShape(workers, worker_gpus, worker_cpus, RESOURCES[stage])
    raise CapacityError(
        f"engine: {_describe_workers(workers, stage, worker_gpus, cpus)} cannot fit on {_describe_nodes(nodes)} "
        f"that declare {RESOURCES[stage]}; ask for fewer or smaller workers, or add nodes"
    )


def _size_on_shared_devices(pools: Pools, nodes: Sequence[Node], scoring: float) -> PoolSizes | None:
    """A generator on every device, and scorers beside them; None where the recipe says otherwise.

    A device's time is the system's to divide, so neither kind is idle while it has work, whatever its share. Not on
    machines of many cores and no GPU: there, workers have several threads each, which wait for each other at every
    step, and badly for threads of others.
    """
    has_gpus = any(node.gpus for node in nodes)
    asked = (pools.generators, pools.scorers, pools.cpus_per_worker)
    asked_gpus = (pools.gpus_per_generator, pools.gpus_per_scorer) if has_gpus else (None, None)
    if (*asked, *asked_gpus) != ("auto", "auto", None, None, None):
        return None
    if has_gpus:
        cpus = min((node.cpus / (2 * int(node.gpus)) for node in nodes if node.gpus >= 1), default=0.0)
        devices = sum(int(node.gpus) for node in nodes)
        shares = [(gpus, float(int(cpus)) or cpus) for gpus in _GPU_SHARES]
    else:
        devices = sum(int(node.cpus) for node in nodes)
        shares = [(0.0, cpus) for cpus in _CORE_SHARES]
    if not devices or (not has_gpus and max(node.cpus for node in nodes) > _MOST_SHARED_CORES):
        return None
    # While a generator wants a device too, a scorer gets half of its time.
    at_first = max(1, min(devices, math.ceil(2 * devices * scoring)))
    generator, scorer = (WorkerShape(devices, gpus, cpus) for gpus, cpus in shares)
    return PoolSizes(generator, replace(scorer, at_first=at_first))


def _size_on_shared_nodes(pools: Pools, nodes: Sequence[Node], scoring: float) -> PoolSizes:
    """Both kinds of workers on the same nodes."""
    cpus = pools.cpus_per_worker
    most_cpus = cpus or _default_cpus(nodes)
    generator_gpus, scorer_gpus = _gpus_per_worker(pools, nodes)
    most_gpus = max(generator_gpus, scorer_gpus)
    slots = _count_slots(nodes, "gpus", most_gpus) if generator_gpus else _count_slots(nodes, "cpus", most_cpus)
    scorers = max(1, min(slots - 1, round(slots * scoring))) if pools.scorers == "auto" else pools.scorers
    if pools.generators == "auto":
        most = _count_slots(nodes, "gpus", generator_gpus) if generator_gpus else slots - scorers
        generators = range(max(1, most), 0, -1)
    else:
        generators = range(pools.generators, pools.generators - 1, -1)
    # Where only the number of generators is given, scorers take what these leave.
    beside = range(scorers, 0, -1) if pools.scorers == "auto" and pools.generators != "auto" else [scorers]
    total_cpus = sum(node.cpus for node in nodes)
    for generator_count, scorer_count in itertools.product(generators, beside):
        fair_cpus = total_cpus / (generator_count + scorer_count)
        for worker_cpus in _cpu_candidates(cpus, most_cpus, generator_gpus, fair_cpus):
            workers = [(generator_gpus, worker_cpus)] * generator_count + [(scorer_gpus, worker_cpus)] * scorer_count
            if _all_fit(workers, nodes):
                return PoolSizes(
                    WorkerShape(generator_count, generator_gpus, worker_cpus),
                    WorkerShape(scorer_count, scorer_gpus, worker_cpus),
                )
    raise CapacityError(
        f"engine: {_describe_workers(generators[0], 'generator', generator_gpus, cpus)} and "
        f"{_describe_workers(scorers, 'scorer', scorer_gpus, cpus)} cannot fit on {_describe_nodes(nodes)}; ask for "
        "fewer or smaller workers, or add nodes"
    )


def _gpus_per_worker(pools: Pools, nodes: Sequence[Node]) -> tuple[float, float]:
    """GPUs of a generator and of a scorer on shared nodes."""
    total = sum(node.gpus for node in nodes)
    default = 0.0 if total == 0 else 0.5 if total < 2 else 1.0
    generator = default if pools.gpus_per_generator is None or not total else pools.gpus_per_generator
    scorer = default if pools.gpus_per_scorer is None or not total else pools.gpus_per_scorer
    return generator, scorer


def _describe_workers(count: int, stage: str, gpus: float, cpus: int | None) -> str:
    """`4 generators (1 GPU and 8 CPUs each)`; CPUs only where the recipe sets them."""
    resources = _count_of(gpus, "GPU") + (f" and {_count_of(cpus, 'CPU')}" if cpus else "")
    return f"{_count_of(count, stage)} ({resources} each)"


def _describe_nodes(nodes: Sequence[Node]) -> str:
    gpus = sum(node.gpus for node in nodes)
    cpus = sum(node.cpus for node in nodes)
    return f"{_count_of(len(nodes), 'node')} with {_count_of(gpus, 'GPU')} and {_count_of(cpus, 'CPU')}"


def _count_of(count: float, noun: str) -> str:
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"


def _default_cpus(nodes: Sequence[Node]) -> int:
    """Cores of a worker without a GPU, where devices are divided: at most eight workers per machine, for the memory."""
    return max(1, int(max(node.cpus for node in nodes)) // 8)


def _count_slots(nodes: Sequence[Node], resource: str, amount: float) -> int:
    """The number of workers of one size that fit; a worker cannot straddle two nodes."""
    return sum(int(getattr(node, resource) / amount + 1e-6) for node in nodes)


def _cpu_candidates(asked: int | None, most: int, gpus: float, fair: float) -> list[float]:
    """CPUs that a worker may get, best first; rather than leave a pool without any, workers share cores."""
    if asked is not None:
        return [float(asked)]
    best = max(1, int(fair)) if gpus else most
    return [*map(float, range(best, 0, -1)), 0.5, 0.25, 0.125, 0.0625]


def _all_fit(workers: Sequence[tuple[float, float]], nodes: Sequence[Node]) -> bool:
    """Whether all workers, each with its GPUs and CPUs, find a node, largest first."""
    free = [[node.gpus, node.cpus] for node in nodes]
    for gpus, cpus in sorted(workers, reverse=True):
        node = next((node for node in free if node[0] >= gpus - 1e-6 and node[1] >= cpus - 1e-6), None)
        if node is None:
            return False
        node[0] -= gpus
        node[1] -= cpus
    return True
