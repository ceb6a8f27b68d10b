"""Joining or starting Ray; its nodes, and what its errors say."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import ray
from ray._private import utils as ray_utils
from ray._private.state import state as ray_state  # the only way to hear of nodes about to be preempted, or to come

from pipeline.errors import CapacityError
from pipeline.plan.pools import RESOURCES, Node

# How long the head of a cluster may take to answer at all.
_CONNECT_S = 20.0


def connect(address: str | None) -> list[Node]:
    """Joins or starts Ray, and returns its nodes: those that are there, or those that its autoscaler may start.

    Raises:
        CapacityError: There is no Ray at the address.
    """
    if not ray.is_initialized():
        # Left to itself, Ray would join whatever cluster somebody has started on this machine. Jobs set RAY_ADDRESS.
        where = address or os.environ.get("RAY_ADDRESS") or "local"
        _require_an_answer(where)
        dashboard = False if where == "local" else None
        before = signal.getsignal(signal.SIGTERM)
        try:
            # Ray has workers import from the current folder first: from the one that this code lies in, then.
            with (
                contextlib.chdir(Path(__file__).parents[2]),
                mock.patch.object(ray_utils, "set_sigterm_handler"),  # Ray's ends the process at once, with code 15
            ):
                ray.init(address=where, include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
        except (ValueError, ConnectionError, RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CapacityError(f"no Ray at {where}: {reason}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # its C++ side has set one as well
    return [
        Node(node.get("CPU", 0), node.get("GPU", 0), frozenset(node.keys() & set(RESOURCES.values())))
        for node in (_to_come() or [node["Resources"] for node in ray.nodes() if node["Alive"]])
        if node.get("CPU")
    ]


def room(nodes: Sequence[Node], gpus: float) -> int:
    """How many workers of one core, and so many devices, the nodes hold."""
    return sum(int(min(node.cpus, node.gpus / gpus if gpus else node.cpus) + 1e-6) for node in nodes)


def _to_come() -> list[dict[str, float]]:
    """What the nodes have that an autoscaler would start, all of them; nothing where it says nothing, or no limit."""
    config = ray_state.get_cluster_config()
    groups = config.node_group_configs if config else []
    if any(group.max_count < 0 for group in groups):
        return []
    return [dict(group.resources) for group in groups for _ in range(group.max_count)]


def _require_an_answer(where: str) -> None:
    """Refuses HOST:PORT where nobody listens: Ray itself would wait there for minutes, without saying for what.

    Raises:
        CapacityError: Nobody does, or it is where jobs are submitted, not where a program joins.
    """
    if where.startswith(("http://", "https://")):
        raise CapacityError(f"no Ray at {where}: jobs are submitted there; write ray job submit -- gnp generate …")
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise CapacityError(f"no Ray at {where}: {error}") from error


def alive() -> set[str]:
    """The ids of the nodes that are there."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def draining() -> set[str]:
    """The ids of the nodes that Ray has been told will go."""
    return set(ray_state.get_draining_nodes())


def gist(error: BaseException) -> str:
    """The line of Ray's page that says what happened."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    telling = [line for line in lines if "Worker exit" in line or "OutOfMemory" in line]
    return (telling or lines[-1:] or [type(error).__name__])[0][:300]
