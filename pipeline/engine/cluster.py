"""The Ray cluster: joining or starting it, its nodes, and the line of a Ray error that says what happened."""

import atexit
import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray._private.state import state as ray_state  # nothing public lists nodes about to be preempted, or to come

from pipeline.engine import ray_folder
from pipeline.errors import CapacityError
from pipeline.models import malloc
from pipeline.plan.pools import RESOURCES, Node

log = logging.getLogger(__name__)

# How long the head of a cluster may take to accept a connection.
_CONNECT_TIMEOUT_S = 20.0
# Whether this process has started Ray with `malloc.ENVIRONMENT`.
_workers_inherit = False


def connect(address: str | None) -> list[Node]:
    """Joins or starts Ray; returns the nodes that it has, or all that its autoscaler may start.

    Raises:
        CapacityError: There is no Ray at the address.
    """
    if not ray.is_initialized():
        # Left to itself, Ray would join whatever cluster somebody has started on this machine. Jobs set RAY_ADDRESS.
        _init(address or os.environ.get("RAY_ADDRESS") or "local")
    node_resources = _autoscaler_nodes() or [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [
        Node(resources.get("CPU", 0), resources.get("GPU", 0), frozenset(resources.keys() & set(RESOURCES.values())))
        for resources in node_resources
        if resources.get("CPU")
    ]


def _init(address: str) -> None:
    _require_listener(address)
    local = {"include_dashboard": False, "_temp_dir": _local_folder()} if address == "local" else {}
    inherits = bool(local) and not any(Path("/dev").glob("nvidia[0-9]*"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        # Workers import from the driver's current folder first, so this must be the folder of this code.
        with (
            contextlib.chdir(Path(__file__).parents[2]),
            mock.patch.object(ray_utils, "set_sigterm_handler"),  # Ray's ends the process at once, with code 15
            mock.patch.object(ray_worker, "connect", _connect_driver),
            mock.patch.dict(os.environ, malloc.ENVIRONMENT if inherits else {}),
        ):
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ValueError, ConnectionError, RuntimeError, AssertionError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CapacityError(f"no Ray at {address}: {reason}") from error
    global _workers_inherit
    _workers_inherit = inherits
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's C++ side has set one as well


def worker_environment(gpus: float) -> dict[str, Any] | None:
    """The `runtime_env` of a worker with so many GPUs; None where it needs none, or inherits it at no cost.

    Only a worker that computes on cores keeps its freed memory, in one heap: on a GPU, its threads would wait for it.
    """
    return None if gpus or _workers_inherit else {"env_vars": malloc.ENVIRONMENT}


def _connect_driver(*arguments: Any, connect: Any = ray_worker.connect, **options: Any) -> Any:
    """Ray's `connect`, without the log level of its daemons: where it is set, Ray prints that it is."""
    level = os.environ.pop("RAY_BACKEND_LOG_LEVEL", None)
    try:
        return connect(*arguments, **options)
    finally:
        if level is not None:
            os.environ["RAY_BACKEND_LOG_LEVEL"] = level


def _local_folder() -> str | None:
    """Where a local Ray keeps its files: None for its own choice, else a folder that is removed when this process ends.

    Raises:
        CapacityError: There is none that it can use.
    """
    chosen = get_default_ray_temp_dir()
    reason = ray_folder.defect(chosen)
    if reason is None:
        return None
    folder = ray_folder.make_short_folder(reason=f"{chosen}: {reason}")
    atexit.register(_remove, folder)
    log.warning("Ray's files go to %s, not to %s: %s", folder, chosen, reason)
    return str(folder / "ray")  # Ray opens its folder to every user, so it is not the private one


def _remove(folder: Path) -> None:
    """Removes the folder of this process's Ray, once Ray has ended."""
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def room(nodes: Sequence[Node], gpus: float) -> int:
    """How many workers the nodes hold, of one core and `gpus` devices each."""
    return sum(int(min(node.cpus, node.gpus / gpus if gpus else node.cpus) + 1e-6) for node in nodes)


def _autoscaler_nodes() -> list[dict[str, float]]:
    """The resources of every node that the autoscaler may start; empty where it names none, or no limit."""
    config = ray_state.get_cluster_config()
    groups = config.node_group_configs if config else []
    if any(group.max_count < 0 for group in groups):
        return []
    return [dict(group.resources) for group in groups for _ in range(group.max_count)]


def _require_listener(address: str) -> None:
    """Refuses HOST:PORT where nothing listens: Ray itself would wait for minutes without a message.

    Raises:
        CapacityError: Nothing listens, or it is the address for submitting jobs, not for joining.
    """
    if address.startswith(("http://", "https://")):
        raise CapacityError(f"no Ray at {address}: jobs are submitted there; write ray job submit -- gnp generate …")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise CapacityError(f"no Ray at {address}: {error}") from error


def live_nodes() -> set[str]:
    """The ids of the nodes that are up."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def draining_nodes() -> set[str]:
    """The ids of the nodes that Ray is about to lose, such as a preempted spot machine."""
    return set(ray_state.get_draining_nodes())


def summary(error: BaseException) -> str:
    """The line of a Ray error that says what happened."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    causes = [line for line in lines if "Worker exit" in line or "OutOfMemory" in line]
    return (causes or lines[-1:] or [type(error).__name__])[0][:300]
