"""How many workers of each kind a cluster holds, and what each is given: arithmetic, without Ray."""

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
        scorers: Workers that score; `auto` is a quarter of the cluster.
        gpus_per_generator: Fractions share a device; by default 1 each, or ½ where there is one GPU only.
        gpus_per_scorer: Likewise.
        cpus_per_worker: Cores, and threads, of each worker; by default what there is, shared out.
    """

    generators: int | Literal["auto"] = "auto"
    scorers: int | Literal["auto"] = "auto"
    gpus_per_generator: float | None = None
    gpus_per_scorer: float | None = None
    cpus_per_worker: int | None = None

    def __post_init__(self) -> None:
        for name in ("generators", "scorers", "cpus_per_worker"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        for name in ("gpus_per_generator", "gpus_per_scorer"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} = {value}: must be a number from 0")


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster declares."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Sizing:
    """Pools with every `auto` settled.

    Attributes:
        generators: Their number.
        scorers: Their number.
        generator_gpus: Of each.
        scorer_gpus: Of each.
        cpus: Of each worker; below 1 where workers outnumber cores.
        threads: Of each worker.
    """

    generators: int
    scorers: int
    generator_gpus: float
    scorer_gpus: float
    cpus: float
    threads: int


def size(pools: Pools, nodes: Sequence[Node]) -> Sizing:
    """Settles the pools' sizes on a cluster, so that both fit beside each other and neither can starve the other.

    Raises:
        CapacityError: What was asked for does not fit.
    """
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    if cpus < 1:
        raise CapacityError("the cluster declares no CPU; start Ray with at least one")
    share = 0.0 if gpus == 0 else 0.5 if gpus < 2 else 1.0
    generator_gpus = share if pools.gpus_per_generator is None else pools.gpus_per_generator
    scorer_gpus = share if pools.gpus_per_scorer is None else pools.gpus_per_scorer
    # Without devices, eight workers a machine at most: more would hold as many copies of every model in memory.
    cores = pools.cpus_per_worker or max(1, int(max(node.cpus for node in nodes)) // 8)
    in_cores = sum(int(node.cpus // cores) for node in nodes)
    slots = int(gpus / max(generator_gpus, scorer_gpus)) if generator_gpus else in_cores
    scorers = max(1, slots // 4) if pools.scorers == "auto" else pools.scorers
    left = int((gpus - scorers * scorer_gpus) / generator_gpus) if generator_gpus else slots - scorers
    generators = max(1, left) if pools.generators == "auto" else pools.generators
    if generator_gpus and pools.cpus_per_worker is None:
        cores = max(1, int(cpus / (generators + scorers)))
    shares = [float(cores)]
    if pools.cpus_per_worker is None:  # down to cores that workers share, rather than a pool without any
        shares = [*map(float, range(cores, 0, -1)), 0.5, 0.25, 0.125, 0.0625]
    for share_of_cores in shares:
        sizing = Sizing(
            generators, scorers, generator_gpus, scorer_gpus, cpus=share_of_cores, threads=max(1, int(share_of_cores))
        )
        if _fits(sizing, nodes):
            return sizing
    raise CapacityError(
        f"engine: {generators} generators ({generator_gpus:g} GPUs each) and {scorers} scorers ({scorer_gpus:g} GPUs "
        f"each) of {cores} CPUs each do not fit {len(nodes)} nodes with {gpus:g} GPUs and {cpus:g} CPUs; "
        "ask for fewer or smaller workers, or add nodes"
    )


def _fits(sizing: Sizing, nodes: Sequence[Node]) -> bool:
    """Whether every worker finds a node, largest first."""
    free = [[node.gpus, node.cpus] for node in nodes]
    wanted = [sizing.generator_gpus] * sizing.generators + [sizing.scorer_gpus] * sizing.scorers
    for gpus in sorted(wanted, reverse=True):
        node = next((n for n in free if n[0] >= gpus - 1e-6 and n[1] >= sizing.cpus - 1e-6), None)
        if node is None:
            return False
        node[0] -= gpus
        node[1] -= sizing.cpus
    return True
