"""Where the campaign takes place: a real S3 server behind a fault proxy, a Ray cluster of several nodes, drivers."""

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
from pipeline.ledger import KINDS, Ledger, Unit
from pipeline.results import schema
from pipeline.storage import Storage
from tests.chaos.proxy import Proxy
from tests.conftest import ROOT
from tests.samples import CLASSES, SIDE, sample, write_shard

_PARTS, _PART = 2, 4
NODES = 3


@dataclass(frozen=True)
class Damage:
    """How a store differs from what an undisturbed run makes.

    Attributes:
        lost: Results that it made and this store lacks.
        twice: Results that are there more often, or that it never made.
        wrong: Results whose bytes are others, or are not what their markers say.
    """

    lost: int
    twice: int
    wrong: int


@dataclass
class Site:
    """Everything that faults are injected into.

    Attributes:
        folder: Scratch, on a disk.
        server: The S3 server.
        proxy: What stands before it.
        cluster: A head without CPUs, for the driver, and nodes that hold workers.
        random: Of the moments and victims.
    """

    folder: Path
    server: local_s3.Server
    proxy: Proxy
    cluster: Cluster
    random: random.Random
    nodes: list[object] = field(default_factory=list)

    def add_node(self) -> None:
        """Adds a machine with one CPU."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def remove_node(self) -> None:
        """Takes one away again."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def kill_node(self) -> bool:
        """A machine goes away without a word; another comes."""
        node = self.nodes.pop(self.random.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.add_node()
        return True

    def kill_worker(self, stage: str) -> bool:
        """SIGKILLs an actor of a stage; False where none runs."""
        victims = []
        for process in psutil.Process().children(recursive=True):  # of this cluster, and of no stranger's
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(part.startswith(f"ray::{stage}") for part in process.cmdline()):
                    victims.append(process)
        if not victims:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            self.random.choice(victims).kill()
        return True

    def kill_server(self) -> bool:
        """The S3 server loses its power, and comes back a moment later."""
        self.server.kill()
        time.sleep(self.random.uniform(0.2, 2.0))
        self.server.start()
        return True

    def drain_node(self) -> bool:
        """A spot machine is given notice; another comes, and the first goes."""
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

    def recipe(self, shards: str, *, checkpoint: Path | None = None, batch_size: int = _PART) -> Path:
        """A recipe over some shards: a tiny real network, two attacks, one target."""
        network = f'model = "test_resnet"\ncheckpoint = "{checkpoint or self.folder / "tiny.safetensors"}"\n'
        path = self.folder / f"recipe-{time.monotonic_ns()}.toml"
        path.write_text(
            f'batch_size = {batch_size}\n[data]\nname = "chaos"\nshards = "{shards}"\nclasses = {CLASSES}\n'
            f"part_size = {_PART}\npreparation = {{ resize = {SIDE}, crop = {SIDE} }}\n"
            f'[budget]\nepsilon = "8/255"\n[[attacks]]\nattack = "mi"\nsteps = 60\n'
            f'[[attacks]]\nattack = "gnp+mi"\nsteps = 60\n'
            f"[[sources]]\n{network}input_size = {SIDE}\n[[targets]]\n{network}input_size = {SIDE}\n"
            "[engine]\nitem_minutes = 5\nstart_minutes = 3\n"
        )
        return path

    def start(
        self, recipe: Path, store: str, *arguments: str, environment: Mapping[str, str] | None = None, faulty: str = ""
    ) -> subprocess.Popen[str]:
        """Starts a driver."""
        program = ["-m", "tests.chaos.driver", faulty] if faulty else ["-m", "jobs"]
        command = [sys.executable, *program, "generate", str(recipe), "--store", store]
        return subprocess.Popen(
            [*command, "--address", self.cluster.address, *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A campaign in the background is deaf to Ctrl-C; its drivers are not to be.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )

    def complete(self, recipe: Path, store: str, *, tries: int = 6) -> int:
        """Runs drivers until one ends well; returns how many it took.

        Raises:
            RuntimeError: None did.
        """
        said = ""
        for count in range(1, tries + 1):
            process = self.start(recipe, store, "--retry-failed")
            said, _ = process.communicate(timeout=600)
            if process.returncode == 0:
                return count
        raise RuntimeError(f"still incomplete after {tries} runs: {said[-2000:]}")

    def under(
        self,
        recipe: Path,
        store: str,
        strike: Callable[[], bool],
        *,
        times: int,
        pause_s: tuple[float, float],
        driver: bool = False,
    ) -> int:
        """Runs to the end while striking at random moments; returns how many strikes there were.

        Args:
            recipe: What to run.
            store: Where.
            strike: Does it; False where there was no victim.
            times: At most so many.
            pause_s: Between two, drawn evenly.
            driver: Whether the driver is the victim, and is started again each time.
        """
        process, struck = self.start(recipe, store, "--retry-failed"), 0
        log = _Reader(process)
        while struck < times and process.poll() is None:
            time.sleep(self.random.uniform(*pause_s))
            if process.poll() is not None:
                break
            if driver:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                struck += 1
                process = self.start(recipe, store, "--retry-failed")
                log = _Reader(process)
            else:
                struck += strike()
        process.wait(900)
        log.join()
        if process.returncode != 0:
            self.complete(recipe, store)
        return struck


class _Reader(threading.Thread):
    """Reads what a driver says, lest its pipe fill up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        assert process.stdout is not None
        self._stream, self.lines = process.stdout, list[str]()
        self.start()

    def run(self) -> None:
        self.lines.extend(self._stream)


def commits(store: str) -> dict[Unit, str]:
    """Every committed result of a store, and the hash of its bytes."""
    ledger = Ledger(Storage(store))
    return {marker.unit: marker.sha256 for kind in KINDS for marker in ledger.markers(ledger.units(kind))}


def compare(reference: Mapping[Unit, str], store: str, *, same_bytes: bool = True) -> Damage:
    """Holds a store against an undisturbed one: every object is read and hashed, every row is counted."""
    ledger = Ledger(Storage(store))
    found = {marker.unit: marker for kind in KINDS for marker in ledger.markers(ledger.units(kind))}
    wrong, rows = 0, Counter[tuple[object, ...]]()
    for unit, marker in found.items():
        try:
            data = ledger.read(marker)
        except GnpError:
            wrong += 1
            continue
        wrong += same_bytes and unit in reference and reference[unit] != marker.sha256
        if unit.target:
            keys = schema.read(data, name=marker.object).column("key").to_pylist()
            rows.update((unit.scope, unit.part.shard, key) for key in keys)
    strangers = sum(unit not in reference for unit in found)
    return Damage(
        lost=sum(unit not in found for unit in reference),
        twice=strangers + sum(count - 1 for count in rows.values()),
        wrong=wrong,
    )


@contextlib.contextmanager
def site(folder: Path, *, seed: int, shards: int) -> Iterator[Site]:
    """Builds the site, with input shards on its S3 server, and takes it down again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), folder / "tiny.safetensors")
    server = local_s3.Server(folder / "s3")
    server.start()
    before = dict(os.environ)
    try:
        with Proxy(server.environment["AWS_ENDPOINT_URL"], seed=seed, stall_s=0.5) as proxy:
            # Ray's nodes, and so its workers, inherit these.
            os.environ.update(server.environment, AWS_ENDPOINT_URL=proxy.url, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            built = Site(folder, server, proxy, cluster, random.Random(seed))  # no secret hangs on it
            try:
                for _ in range(NODES):
                    built.add_node()
                fill(built, shards)
                yield built
            finally:
                cluster.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()


def fill(built: Site, shards: int) -> None:
    """Writes the input shards: `INPUT/s-00.tar` …, each of a few parts."""
    storage = Storage(INPUT, create=True)
    for number in range(shards):
        path = built.folder / "in" / f"s-{number:02d}.tar"
        write_shard(path, [sample(100 * number + index) for index in range(_PARTS * _PART)])
        storage.put(path.name, path.read_bytes())


INPUT = "s3://demo/input"
