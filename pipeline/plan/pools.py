"""How many workers of each kind a cluster holds, and what each is given: arithmetic, without Ray."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import CapacityError


@dataclass(frozen=True)
class Pools:
    """`[engine]`: how many workers of each kind, and what each is given.

    Attributes:
        generators: Workers that attack; `auto` fills the cluster.
        scorers: Workers that score; `auto` is the share of the cluster that scoring is of all that the recipe makes, by
            what a gradient of each source and an answer of each target took before the run.
        gpus_per_generator: Fractions share a device; by default 1 each, or ½ where there is one GPU only. Passed over
            where there is none.
        gpus_per_scorer: Likewise.
        cpus_per_worker: Cores, and threads, of each worker; by default what there is, shared out.
        item_minutes: An item (a shard, or some of its parts) that takes longer is stopped and counts as a failed try.
        start_minutes: When no worker of a kind could start for so long, or trying to load the models took longer, the
            run ends and says so.
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
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        for name in ("gpus_per_generator", "gpus_per_scorer"):
            value = getattr(self, name)
            if value is not None and value != 0 and not 0.01 <= value < math.inf:
                raise ValueError(f"{name} = {value}: must be 0, or a number from 0.01")
        for name in ("item_minutes", "start_minutes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}: must be a positive number")


# Where a cluster's nodes declare one of these custom resources, workers of that kind start on those nodes alone.
RESOURCES = {"generator": "gnp_generator", "scorer": "gnp_scorer"}


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster declares.

    Attributes:
        cpus: Cores.
        gpus: Devices.
        declares: Which of `RESOURCES`.
    """

    cpus: float
    gpus: float
    declares: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Crew:
    """The workers of one kind.

    Attributes:
        count: Their number.
        gpus: Of each.
        cpus: Of each; below 1 where workers outnumber cores.
        resource: The custom resource of the nodes that they are kept to; empty where there is none.
    """

    count: int
    gpus: float
    cpus: float
    resource: str = ""

    @property
    def threads(self) -> int:
        """Of each."""
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class Sizing:
    """Pools with every `auto` settled."""

    generator: Crew
    scorer: Crew


def size(pools: Pools, nodes: Sequence[Node], *, scoring: float) -> Sizing:
    """Settles the pools' sizes on a cluster, so that both fit beside each other and neither can starve the other.

    Where the cluster has no GPU at all, what the pools ask of GPUs is passed over: the same recipe runs on a laptop.
    Where it keeps nodes for generators and other nodes for scorers, each pool fills its own.

    Args:
        pools: What the recipe asks for.
        nodes: What there is.
        scoring: The share of the work that is scoring, in [0, 1].

    Raises:
        CapacityError: What was asked for does not fit.
    """
    if sum(node.cpus for node in nodes) < 1:
        raise CapacityError("the cluster declares no CPU; start Ray with at least one")
    if apart(nodes):
        own = {stage: [node for node in nodes if name in node.declares] for stage, name in RESOURCES.items()}
        return Sizing(
            _alone("generator", pools.generators, pools.gpus_per_generator, pools.cpus_per_worker, own["generator"]),
            _alone("scorer", pools.scorers, pools.gpus_per_scorer, pools.cpus_per_worker, own["scorer"]),
        )
    return _together(pools, nodes, scoring)


def apart(nodes: Sequence[Node]) -> bool:
    """Whether nodes keep the two kinds of workers apart: some are declared for each, and none for both."""
    declared = {node.declares for node in nodes if node.declares}
    return declared == {frozenset({name}) for name in RESOURCES.values()}


def half_apart(nodes: Sequence[Node]) -> str:
    """What to tell whoever declared resources, where they keep nothing apart; else nothing."""
    if apart(nodes) or not any(node.declares for node in nodes):
        return ""
    both = sum(len(node.declares) > 1 for node in nodes)
    missing = sorted(set(RESOURCES.values()).difference(*(node.declares for node in nodes)))
    why = f"no node declares {missing[0]}" if missing else f"{both} of {len(nodes)} nodes declare both of them"
    return f"generators and scorers share all nodes: {why} ({' and '.join(sorted(RESOURCES.values()))} keep them apart)"


def _alone(
    stage: str, count: int | Literal["auto"], gpus: float | None, cpus: int | None, nodes: Sequence[Node]
) -> Crew:
    """A pool on nodes of its own."""
    devices = 0.0 if not any(node.gpus for node in nodes) else 1.0 if gpus is None else gpus
    cores = cpus or _cores(nodes)
    slots = _slots(nodes, "gpus", devices) if devices else _slots(nodes, "cpus", cores)
    wanted = max(1, slots) if count == "auto" else count
    fair = sum(node.cpus for node in nodes) / wanted
    for each in _shares(cpus, cores, devices, fair):
        if _fits([(devices, each)] * wanted, nodes):
            return Crew(wanted, devices, each, RESOURCES[stage])
    raise CapacityError(
        f"engine: {wanted} {stage}s ({devices:g} GPUs each) of {cpus or 'some'} CPUs each do not fit {_told(nodes)} "
        f"that declare {RESOURCES[stage]}; ask for fewer or smaller workers, or add nodes"
    )


def _together(pools: Pools, nodes: Sequence[Node], scoring: float) -> Sizing:
    """Both pools on the same nodes."""
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    share = 0.0 if gpus == 0 else 0.5 if gpus < 2 else 1.0
    generator_gpus = share if pools.gpus_per_generator is None or not gpus else pools.gpus_per_generator
    scorer_gpus = share if pools.gpus_per_scorer is None or not gpus else pools.gpus_per_scorer
    cores = pools.cpus_per_worker or _cores(nodes)
    most = max(generator_gpus, scorer_gpus)
    slots = _slots(nodes, "gpus", most) if generator_gpus else _slots(nodes, "cpus", cores)
    scorers = max(1, min(slots - 1, round(slots * scoring))) if pools.scorers == "auto" else pools.scorers
    generators = pools.generators
    if generators == "auto":
        bound = _slots(nodes, "gpus", generator_gpus) if generator_gpus else slots - scorers
        candidates = range(max(1, bound), 0, -1)
    else:
        candidates = range(generators, generators - 1, -1)
    # Where only the number of generators is given, scorers take what these leave.
    fewer = range(scorers, 0, -1) if pools.scorers == "auto" and pools.generators != "auto" else [scorers]
    for count, beside in itertools.product(candidates, fewer):
        for each in _shares(pools.cpus_per_worker, cores, generator_gpus, cpus / (count + beside)):
            if _fits([(generator_gpus, each)] * count + [(scorer_gpus, each)] * beside, nodes):
                return Sizing(Crew(count, generator_gpus, each), Crew(beside, scorer_gpus, each))
    raise CapacityError(
        f"engine: {candidates[0]} generators ({generator_gpus:g} GPUs each) and {scorers} scorers ({scorer_gpus:g} "
        f"GPUs each) of {pools.cpus_per_worker or 'some'} CPUs each do not fit {_told(nodes)}; ask for fewer or "
        "smaller workers, or add nodes"
    )


def _told(nodes: Sequence[Node]) -> str:
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    return f"{len(nodes)} nodes with {gpus:g} GPUs and {cpus:g} CPUs"


def _cores(nodes: Sequence[Node]) -> int:
    """Of a worker without a device: eight a machine at most, for more would hold as many copies of every model."""
    return max(1, int(max(node.cpus for node in nodes)) // 8)


def _slots(nodes: Sequence[Node], resource: str, each: float) -> int:
    """How many workers of one size the nodes hold; a worker cannot straddle two."""
    return sum(int(getattr(node, resource) / each + 1e-6) for node in nodes)


def _shares(asked: int | None, cores: int, gpus: float, fair: float) -> list[float]:
    """CPUs a worker may be given, best first: down to cores that workers share, rather than a pool without any."""
    if asked is not None:
        return [float(asked)]
    most = max(1, int(fair)) if gpus else cores
    return [*map(float, range(most, 0, -1)), 0.5, 0.25, 0.125, 0.0625]


def _fits(wanted: Sequence[tuple[float, float]], nodes: Sequence[Node]) -> bool:
    """Whether every worker, of so many GPUs and CPUs, finds a node, largest first."""
    free = [[node.gpus, node.cpus] for node in nodes]
    for gpus, cpus in sorted(wanted, reverse=True):
        node = next((n for n in free if n[0] >= gpus - 1e-6 and n[1] >= cpus - 1e-6), None)
        if node is None:
            return False
        node[0] -= gpus
        node[1] -= cpus
    return True
