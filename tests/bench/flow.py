"""How evenly work flows from attacking to scoring: whole runs on real networks, and eight devices that only pass time.

A run's time, from the call to its result, with Ray and the workers' start, is set against what bare loops on all cores
would take to attack and then to score the same images. The devices are logical ones: a worker that uses one holds a
lock on it, so that two workers of one device take turns, as on a GPU.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from pipeline.engine import actors, scheduler
from pipeline.engine.worker import ItemResult, Worker
from pipeline.ledger.progress import StageTotals
from pipeline.plan.outline import Item, PickledPlan
from pipeline.plan.pools import Node, Pools, size_pools
from pipeline.storage import Storage
from tests.bench.figures import ROOT, Figure
from tests.scale.plans import item, large_plan

_DEMO = ROOT / "build" / "demo"
_CORES = len(os.sched_getaffinity(0))
_BARE_S = 15.0
_PART = 10
_STEPS = 20

# --- whole runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """Photographs in shards, attacked by two attacks of twenty gradients and scored on three targets.

    Attributes:
        shards: Number of shards.
        parts: Parts of all shards, of ten images each.
        draws: Noisy copies that one of the targets predicts of each image, as a defense; 1: it is undefended.
    """

    shards: int
    parts: int
    draws: int = 1

    def recipe(self, folder: Path) -> Path:
        """Writes the shards and the recipe."""
        from jobs.runners.curvature import first_images
        from pipeline.data import parts
        from pipeline.plan.recipe_reader import load_recipe

        demo = load_recipe(ROOT / "jobs" / "recipes" / "demo.toml").job()
        photographs = first_images(demo.data, 20)
        count = self.parts * _PART // self.shards
        (folder / "in").mkdir()
        for shard in range(self.shards):
            some = parts.select(photographs, [(shard + index) % 20 for index in range(count)])
            some = replace(some, keys=tuple(f"image{shard:03d}{index:06d}" for index in range(count)))
            (folder / "in" / f"s-{shard:03d}.tar").write_bytes(parts.encode_tar(some, some.pixels))
        defense = f'defense = "smoothing"\nsmoothing = {{ draws = {self.draws} }}\n' if self.draws > 1 else ""
        tables = "".join(
            f'[[{kind}]]\nmodel = "{model}"\ncheckpoint = "{_DEMO}/weights/{weights}.safetensors"\n{more}'
            for kind, model, weights, more in (
                ("sources", "tf_efficientnet_lite0", "lite0", ""),
                ("targets", "tf_efficientnet_lite0", "lite0", defense),
                ("targets", "tf_efficientnet_lite1", "lite1", ""),
                ("targets", "tf_efficientnet_lite2", "lite2", ""),
            )
        )
        recipe = folder / "recipe.toml"
        recipe.write_text(
            f'batch_size = {_PART}\nattacks = ["i", "mi"]\n[data]\nname = "flow"\nshards = "{folder}/in/*.tar"\n'
            f"part_size = {_PART}\n[budget]\nsteps = {_STEPS}\n{tables}"
        )
        return recipe


def bare_loop(recipe: str, kind: str) -> None:
    """Attacks, or scores, a part's images for some time; prints the seconds that each image took as JSON."""
    import torch

    from jobs.runners.curvature import first_images
    from pipeline.attack.batch import AdmixPool
    from pipeline.attack.recipe import Attack
    from pipeline.data import codec
    from pipeline.models import malloc, predict, registry
    from pipeline.models.registry import ResolvedSource
    from pipeline.plan.recipe_reader import load_recipe
    from pipeline.plan.resolve import resolve_job

    torch.set_num_threads(1)
    malloc.keep_freed_memory()
    device, job = torch.device("cpu"), load_recipe(Path(recipe)).job()
    images = first_images(job.data, _PART)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder, create=True)
        plan = resolve_job(job, storage)
        (source,) = plan.sources
        assert isinstance(source, ResolvedSource)
        network = registry.load_source(source, storage, classes=1000, device=device)
        targets = [
            (registry.load_resolved(target, storage, classes=1000, device=device), target) for target in plan.targets
        ]
        defenses = [registry.load_defenses(target, storage, device=device) for _, target in targets]

    def attack_all() -> None:
        pool = AdmixPool(images.pixels, images.labels)
        for attack in job.attacks:
            assert isinstance(attack, Attack)
            attack(network, codec.to_float(images.pixels), images.labels, images.keys, pool=pool)

    def score_all() -> None:
        for _ in range(1 + len(job.attacks)):
            for (target, resolved), ready in zip(targets, defenses, strict=True):
                predict.predict(
                    target,
                    images.pixels,
                    images.labels,
                    batch_size=_PART,
                    device=device,
                    defenses=predict.SeededDefenses(ready, 0, images.keys),
                    name=resolved.spec.name,
                )

    work = attack_all if kind == "attack" else score_all
    work()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < _BARE_S:
        work()
        count += _PART
    sys.stdout.write(json.dumps((time.perf_counter() - started) / count) + "\n")


def _bare_s(recipe: Path, kind: str) -> float:
    """Seconds that a core takes for all attacks on an image, or all predictions of it, while all cores do."""
    code = "import sys; from tests.bench.flow import bare_loop; bare_loop(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(recipe), kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    loops = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(_CORES)
    ]
    return sum(float(loop.communicate()[0].splitlines()[-1]) for loop in loops) / _CORES


def _measure(called: str, workload: Workload) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = workload.recipe(folder)
        attack_s, score_s = _bare_s(recipe, "attack"), _bare_s(recipe, "score")
        command = [sys.executable, "-m", "jobs", "generate", str(recipe), "--store", f"{folder}/store"]
        started = time.time()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        took = time.time() - started
        store = Storage(f"{folder}/store")
        first_original = min(stored.modified for stored in store.list("markers/original"))
        first_scored = min(stored.modified for stored in store.list("markers/transfer"))
    images = workload.parts * _PART
    bare = images * (attack_s + score_s) / _CORES
    return [
        Figure(f"{called}: bare attacks and predictions on all cores", bare, "s"),
        Figure(f"{called}: a run, from prompt to prompt", took, "s"),
        Figure(f"{called}: the run, of the bare loops' time", took / bare, "×", None, -1.15),
        Figure(
            f"{called}: the first results, of the time that a part's attacks take",
            (first_scored - first_original) / (_PART * attack_s),
            "×",
            None,
            -1.5,
        ),
        Figure(f"{called}: scoring, of the work", score_s / (attack_s + score_s), ""),
    ]


# --- devices that pass time ------------------------------------------------------------------------------------------

_DEVICES = 8
_UNITS = 10
_QUANTUM_S = 0.05
_WARM_UP_S = 60.0
_WATCHED_S = 45.0


class TimePasser(Worker):
    """A worker of either stage that holds its device for a second per unit, or as long as scoring takes in proportion.

    The name of the store is the share of scoring; each worker writes there how long it held its device, and when.
    """

    def __init__(self, stage: str, _sealed: bytes, _plan: str, store: str, _threads: int, _run: str) -> None:
        self._attacks = stage == "generator"
        self._folder = Path(store)
        share = float(self._folder.name)
        self._unit_s = 1.0 if self._attacks else share / (1 - share)
        self._parts = 0
        self._stopping = threading.Event()

    def load(self) -> None:
        device = ray.get_gpu_ids()[0]
        self._lock = (self._folder / f"device-{device}").open("w")
        self._log = (self._folder / f"used-{device}-{os.getpid()}").open("w", buffering=1)

    def run(self, item: Item, attempt: int, following: Item | None = None) -> ItemResult:
        del attempt, following
        made = self._folder / f"made-{item.name}"
        scored = self._folder / f"scored-{item.name}"
        done = made if self._attacks else scored
        count = int(done.read_text()) if done.exists() else 0
        while count < (_UNITS if self._attacks else int(made.read_text())):
            if self._stopping.is_set():
                return ItemResult("stopped")
            self._use_device()
            count += 1
            self._parts += 1
            done.with_suffix(".new").write_text(str(count))
            done.with_suffix(".new").rename(done)
        return ItemResult("done", totals=self.take_totals()[0])

    def _use_device(self) -> None:
        left = self._unit_s
        while left > 0:
            turn = min(left, _QUANTUM_S)
            with self._turn():
                time.sleep(turn)
                self._log.write(f"{time.time()} {turn}\n")
            left -= turn

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def take_totals(self) -> tuple[StageTotals, int]:
        parts, self._parts = self._parts, 0
        return StageTotals(parts=parts), 0


def _busy_shares(share: float) -> list[float]:
    """The share of time in which each device was held, after the first minute."""
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / str(share)
        storage = Storage(str(folder), create=True)
        sizing = size_pools(Pools(), [Node(16, _DEVICES)], scoring=share)
        planned = PickledPlan(replace(large_plan(), selections=()), b"")
        running = scheduler.Scheduler(planned, "plan", storage, sizing, Pools())
        items = [item(number) for number in range(4 * _DEVICES * int(_WARM_UP_S + _WATCHED_S) // _UNITS)]
        started = time.time()
        timer = threading.Timer(_WARM_UP_S + _WATCHED_S, stop.set)
        timer.start()
        running.work(items, stop)
        running.close()
        held = dict.fromkeys(map(str, range(_DEVICES)), 0.0)
        for path in folder.glob("used-*"):
            for line in path.read_text().splitlines():
                at, seconds = map(float, line.split())
                if _WARM_UP_S <= at - started < _WARM_UP_S + _WATCHED_S:
                    held[path.name.split("-")[1]] += seconds
    return [seconds / _WATCHED_S for seconds in held.values()]


def flow() -> list[Figure]:
    """Measures whole runs, and how busy eight devices are at three shares of scoring."""
    from jobs.demo import assets

    assets.prepare(_DEMO)
    figures = [
        *_measure("one shard", Workload(shards=1, parts=40)),
        *_measure("8 shards", Workload(shards=8, parts=40)),
        *_measure("8 shards, scoring that costs as much", Workload(shards=8, parts=8, draws=30)),
    ]
    ray.init(num_cpus=16, num_gpus=_DEVICES, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    setattr(actors, "Worker", TimePasser)  # noqa: B010
    for share in (0.04, 0.2, 0.6):
        shares = _busy_shares(share)
        called = f"8 devices, {share:.0%} scoring: busy share after the first minute"
        figures.append(Figure(called, sum(shares) / len(shares), "", (min(shares), max(shares)), 0.95))
    ray.shutdown()
    return figures
