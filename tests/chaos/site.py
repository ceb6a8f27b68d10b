"""Test bed of the fault campaign: a real S3 server behind a fault proxy, a Ray cluster of several nodes, drivers."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import timm
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import save_file

from infra import local_s3
from pipeline.errors import GnpError
from pipeline.ledger import UNIT_KINDS, Ledger, Unit
from pipeline.results import schema
from pipeline.storage import Storage
from tests.chaos.proxy import Proxy
from tests.conftest import ROOT
from tests.samples import CLASSES, SIDE, sample, write_shard

INPUT = "s3://demo/input"
# One shard of many parts.
LONG_INPUT = "s3://demo/long"
_LONG_PARTS = 24
NODES = 3
_PARTS_PER_SHARD = 2
_PART_SIZE = 4


@dataclass(frozen=True)
class Damage:
    """How a store differs from what an undisturbed run makes.

    Attributes:
        lost: Results of the undisturbed run that the store lacks.
        twice: Duplicate results, and results that the undisturbed run did not make.
        wrong: Results with other bytes than the undisturbed run's, or than their markers name.
    """

    lost: int
    twice: int
    wrong: int

    def __add__(self, other: "Damage") -> "Damage":
        return Damage(self.lost + other.lost, self.twice + other.twice, self.wrong + other.wrong)


@dataclass
class Site:
    """Everything that faults are injected into.

    Attributes:
        folder: Folder for temporary files, on a disk.
        server: The S3 server.
        proxy: The proxy between clients and the server.
        cluster: A head without CPUs, for the driver, and worker nodes.
        random: Draws moments and victims.
        nodes: The worker nodes.
    """

    folder: Path
    server: local_s3.Server
    proxy: Proxy
    cluster: Cluster
    random: random.Random
    nodes: list[object] = field(default_factory=list)

    def add_node(self) -> None:
        """Adds a node with one CPU."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def remove_node(self) -> None:
        """Removes the node that was added last."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def kill_node(self) -> bool:
        """Kills a node without notice, and adds another; returns True."""
        node = self.nodes.pop(self.random.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.add_node()
        return True

    def kill_worker(self, stage: str) -> bool:
        """SIGKILLs an actor of a stage; returns False where none runs."""
        victims = []
        for process in psutil.Process().children(recursive=True):  # only actors of this cluster
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(part.startswith(f"ray::{stage}") for part in process.cmdline()):
                    victims.append(process)
        if not victims:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            self.random.choice(victims).kill()
        return True

    def kill_server(self) -> bool:
        """SIGKILLs the S3 server and starts it again after a moment; returns True."""
        self.server.kill()
        time.sleep(self.random.uniform(0.2, 2.0))
        self.server.start()
        return True

    def drain_node(self) -> bool:
        """Drains a node as for a spot machine's preemption, adds another and removes the first; returns True."""
        node = self.nodes.pop(self.random.randrange(len(self.nodes)))
        self.add_node()
        subprocess.run(
            [
                *(str(Path(sys.executable).with_name("ray")), "drain-node"),
                *("--address", self.cluster.address, "--node-id", node.node_id),  # type: ignore[attr-defined]
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
                *("--deadline-remaining-seconds", "10"),
            ],
            check=True,
            capture_output=True,
        )
        time.sleep(10)
        self.cluster.remove_node(node, allow_graceful=False)
        return True

    def recipe(self, shards: str, *, checkpoint: Path | None = None, batch_size: int = _PART_SIZE) -> Path:
        """Writes a recipe over some shards: a tiny real network, two attacks, one target."""
        network = f'model = "test_resnet"\ncheckpoint = "{checkpoint or self.folder / "tiny.safetensors"}"\n'
        path = self.folder / f"recipe-{time.monotonic_ns()}.toml"
        path.write_text(
            f'batch_size = {batch_size}\n[data]\nname = "chaos"\nshards = "{shards}"\nclasses = {CLASSES}\n'
            f"part_size = {_PART_SIZE}\npreparation = {{ resize = {SIDE}, crop = {SIDE} }}\n"
            f'[budget]\nepsilon = "8/255"\n[[attacks]]\nattack = "mi"\nsteps = 60\n'
            f'[[attacks]]\nattack = "gnp+mi"\nsteps = 60\n'
            f"[[sources]]\n{network}input_size = {SIDE}\n[[targets]]\n{network}input_size = {SIDE}\n"
            "[engine]\nitem_minutes = 5\nstart_minutes = 3\n"
        )
        return path

    def start(
        self, recipe: Path, store: str, *arguments: str, environment: Mapping[str, str] | None = None, faults: str = ""
    ) -> subprocess.Popen[str]:
        """Starts `gnp generate`; with `faults`, the folder of `tests.chaos.driver`, with workers that fail."""
        program = ["-m", "tests.chaos.driver", faults] if faults else ["-m", "jobs"]
        command = [sys.executable, *program, "generate", str(recipe), "--store", store]
        return subprocess.Popen(
            [*command, "--address", self.cluster.address, *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A campaign in the background ignores Ctrl-C; its drivers must not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )

    def complete(self, recipe: Path, store: str, *, tries: int = 6) -> int:
        """Runs drivers until one succeeds; returns the number of runs.

        Raises:
            RuntimeError: None of `tries` runs succeeded.
        """
        output = ""
        for count in range(1, tries + 1):
            process = self.start(recipe, store, "--retry-failed")
            output, _ = process.communicate(timeout=600)
            if process.returncode == 0:
                return count
        raise RuntimeError(f"still incomplete after {tries} runs: {output[-2000:]}")

    def run_with_faults(
        self,
        recipe: Path,
        store: str,
        inject: Callable[[], bool],
        *,
        times: int,
        pause_s: tuple[float, float],
        driver: bool = False,
    ) -> int:
        """Completes a run while injecting faults at random moments; returns the number of injections.

        Args:
            recipe: Recipe to run.
            store: Store of the run.
            inject: Injects a fault; returns False where there was no victim.
            times: The most injections.
            pause_s: Bounds of the time between two injections, drawn uniformly.
            driver: Whether to kill the driver and start it again, instead of calling `inject`.
        """
        process = self.start(recipe, store, "--retry-failed")
        injected = 0
        log = _Reader(process)
        while injected < times and process.poll() is None:
            time.sleep(self.random.uniform(*pause_s))
            if process.poll() is not None:
                break
            if driver:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                injected += 1
                process = self.start(recipe, store, "--retry-failed")
                log = _Reader(process)
            else:
                injected += inject()
        process.wait(900)
        log.join()
        if process.returncode != 0:
            self.complete(recipe, store)
        return injected


class _Reader(threading.Thread):
    """Reads the output of a driver, so that its pipe does not fill up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        assert process.stdout is not None
        self._stream, self.lines = process.stdout, list[str]()
        self.start()

    def run(self) -> None:
        self.lines.extend(self._stream)


def commits(store: str) -> dict[Unit, str]:
    """Every committed object of a store, and the hash of its bytes."""
    ledger = Ledger(Storage(store))
    return {
        marker.unit: marker.sha256 for kind in UNIT_KINDS for marker in ledger.read_markers(ledger.list_units(kind))
    }


def compare(reference: Mapping[Unit, str], store: str, *, same_bytes: bool = True) -> Damage:
    """Compares a store with the undisturbed one: reads and hashes every object, counts every row."""
    ledger = Ledger(Storage(store))
    committed = {marker.unit: marker for kind in UNIT_KINDS for marker in ledger.read_markers(ledger.list_units(kind))}
    wrong = 0
    rows = Counter[tuple[object, ...]]()
    for unit, marker in committed.items():
        try:
            data = ledger.read_data(marker)
        except GnpError:
            wrong += 1
            continue
        wrong += same_bytes and unit in reference and reference[unit] != marker.sha256
        if unit.target:
            keys = schema.read_parquet(data, name=marker.object).column("key").to_pylist()
            rows.update((unit.scope, unit.part.shard, key) for key in keys)
    unexpected = sum(unit not in reference for unit in committed)
    return Damage(
        lost=sum(unit not in committed for unit in reference),
        twice=unexpected + sum(count - 1 for count in rows.values()),
        wrong=wrong,
    )


@contextlib.contextmanager
def site(folder: Path, *, seed: int, shards: int) -> Iterator[Site]:
    """Starts server, proxy and cluster, uploads the input shards, and stops everything in the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), folder / "tiny.safetensors")
    server = local_s3.Server(folder / "s3")
    server.start()
    environment = dict(os.environ)
    try:
        with Proxy(server.environment["AWS_ENDPOINT_URL"], seed=seed, stall_s=0.5) as proxy:
            # Ray's nodes and workers inherit these.
            os.environ.update(server.environment, AWS_ENDPOINT_URL=proxy.url, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            built = Site(folder, server, proxy, cluster, random.Random(seed))  # draws no secrets
            try:
                for _ in range(NODES):
                    built.add_node()
                write_input(built, shards)
                yield built
            finally:
                cluster.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(environment)
        server.stop()


def write_input(built: Site, shards: int) -> None:
    """Writes the input shards, `INPUT/s-00.tar` …, of `_PARTS_PER_SHARD` parts, and one of many."""
    storage = Storage(INPUT, create=True)
    for number in range(shards):
        path = built.folder / "in" / f"s-{number:02d}.tar"
        write_shard(path, [sample(100 * number + index) for index in range(_PARTS_PER_SHARD * _PART_SIZE)])
        storage.put(path.name, path.read_bytes())
    path = write_shard(built.folder / "s-long.tar", [sample(index) for index in range(_LONG_PARTS * _PART_SIZE)])
    Storage(LONG_INPUT, create=True).put(path.name, path.read_bytes())
