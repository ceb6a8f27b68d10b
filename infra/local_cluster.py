"""A Ray cluster of several nodes on this machine, for trials and tests.

    python -m infra.local_cluster COMMAND...

starts a head that takes no work, a node for generators and a node for scorers, with token authentication; runs the
command with the environment to reach them (`ray job submit -- gnp generate …`); and stops them.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_START_S = 60
BIN = Path(sys.executable).parent


class Cluster:
    """Ray nodes as processes that can be added and removed.

    Attributes:
        environment: Environment variables with which Ray's tools reach the cluster and its jobs.
        head: Process of the head, once started; the programs of submitted jobs are its children.
        nodes: Processes of the worker nodes, by the custom resource that they declare.
    """

    def __init__(self) -> None:
        # Ray creates sockets in it, whose paths may have at most 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self._port, self._dashboard, self._client = _free_ports(3)
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_ADDRESS": f"http://127.0.0.1:{self._dashboard}",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.head: subprocess.Popen[bytes] | None = None
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Starts the head, which takes no work.

        Raises:
            TimeoutError: The head did not answer in time.
        """
        self.head = self._run(
            "--head",
            f"--port={self._port}",
            f"--ray-client-server-port={self._client}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self._dashboard}",
            f"--temp-dir={self._folder}",
            "--num-cpus=0",
        )
        self._wait(0)

    def add(self, resource: str, *, cpus: int = 1) -> None:
        """Starts a node that declares a custom resource.

        Raises:
            TimeoutError: The node did not join in time.
        """
        self.nodes[resource] = self._run(
            f"--address=127.0.0.1:{self._port}", f"--num-cpus={cpus}", f"--resources={json.dumps({resource: 1})}"
        )
        self._wait(len(self.nodes))

    def remove(self, resource: str) -> None:
        """Kills a node and all its processes at once, like the loss of a machine."""
        os.killpg(self.nodes.pop(resource).pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kills every node."""
        for process in [*self.nodes.values(), *([self.head] if self.head else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, *options: str) -> "subprocess.Popen[bytes]":
        (agent,) = _free_ports(1)
        command = [str(BIN / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        command += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=200000000"]
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        with (self._folder / "nodes.log").open("ab") as log:
            return subprocess.Popen(
                [*command, *options],
                env={**os.environ, **self.environment, "PATH": path},
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that it and its children can be killed together
            )

    def _wait(self, workers: int) -> None:
        """Waits until the head and the worker nodes have joined."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if len(self.alive()) == workers + 1:
                return
            time.sleep(0.5)
        log = (self._folder / "nodes.log").read_text(errors="replace")[-2000:]
        raise TimeoutError(f"{workers + 1} nodes did not join within {_START_S} s:\n{log}")

    def alive(self) -> list[dict[str, float]]:
        """The resources of each live node, the head included; empty while the head does not answer."""
        try:
            nodes = self.ask("/api/v0/nodes")["data"]["result"]["result"]
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return []
        return [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]

    def ask(self, path: str) -> Any:
        """The head's JSON answer to a GET request, such as `/api/jobs/ID`.

        Raises:
            OSError: The head does not answer.
        """
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.environment['RAY_ADDRESS']}{path}", headers=token)  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Runs a head and a node for each kind of worker while entered."""
    running = Cluster()
    try:
        running.start()
        for resource in ("gnp_generator", "gnp_scorer"):
            running.add(resource)
        yield running
    finally:
        running.stop()


def _free_ports(count: int) -> list[int]:
    """Free loopback ports, above the range of Ray's workers and below that of outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = 20000 + secrets.randbelow(12768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


if __name__ == "__main__":
    with cluster() as started:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **started.environment, "PATH": path}
        sys.exit(subprocess.run(sys.argv[1:], env=environment, check=False).returncode)
