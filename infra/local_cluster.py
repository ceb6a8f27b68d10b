"""A Ray cluster of several nodes on this machine, as clusters elsewhere are: for a trial, and for the tests.

    python -m infra.local_cluster COMMAND...

starts a head that does no work, a node kept for generators and one kept for scorers, with token authentication; runs
the command with what it needs to reach them (`ray job submit -- gnp generate …`); and stops them.
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
    """Nodes as processes that can be added and removed.

    Attributes:
        environment: What Ray's tools need to reach the cluster and its jobs.
        head: The head's process, once it was started; below it run the programs of submitted jobs.
        nodes: The workers' processes, by the custom resource that they declare.
    """

    def __init__(self) -> None:
        # Ray puts sockets below, whose paths may have 107 characters.
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
        """Starts the head, which does no work.

        Raises:
            TimeoutError: It did not answer in time.
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
            TimeoutError: It did not join in time.
        """
        self.nodes[resource] = self._run(
            f"--address=127.0.0.1:{self._port}", f"--num-cpus={cpus}", f"--resources={json.dumps({resource: 1})}"
        )
        self._wait(len(self.nodes))

    def remove(self, resource: str) -> None:
        """Ends a node and all that runs on it at once, as the loss of a machine does."""
        os.killpg(self.nodes.pop(resource).pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends every node."""
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
                start_new_session=True,  # so that it and all that it starts can be ended together
            )

    def _wait(self, workers: int) -> None:
        """Until the head and so many nodes that work are there."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if len(self.alive()) == workers + 1:
                return
            time.sleep(0.5)
        said = (self._folder / "nodes.log").read_text(errors="replace")[-2000:]
        raise TimeoutError(f"{workers + 1} nodes were not there within {_START_S} s:\n{said}")

    def alive(self) -> list[dict[str, float]]:
        """What each node that is there declares, the head among them; nothing while nobody answers."""
        try:
            nodes = self.ask("/api/v0/nodes")["data"]["result"]["result"]
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return []
        return [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]

    def ask(self, path: str) -> Any:
        """What the head answers to a GET, such as of `/api/jobs/ID`.

        Raises:
            OSError: It does not answer.
        """
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        asked = urllib.request.Request(f"{self.environment['RAY_ADDRESS']}{path}", headers=token)  # noqa: S310
        with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310
            return json.load(answer)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A head and a node for each kind of worker, while entered."""
    running = Cluster()
    try:
        running.start()
        for resource in ("gnp_generator", "gnp_scorer"):
            running.add(resource)
        yield running
    finally:
        running.stop()


def _free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on: above those of Ray's workers, below those of outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = 20000 + secrets.randbelow(12768)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
    return found


if __name__ == "__main__":
    with cluster() as started:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **started.environment, "PATH": path}
        sys.exit(subprocess.run(sys.argv[1:], env=environment, check=False).returncode)
