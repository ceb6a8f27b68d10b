"""Images per second of real runs with real Ray workers on all cores, against as many bare attack loops at once.

A run is measured from its first committed original to its last adversarial part, by the markers' times. Bare loops run
in processes of their own before and after it, with the same network, images and batches, and nothing to read or store.
"""

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
from safetensors.torch import save_file

from jobs.demo import assets
from jobs.runners.curvature import first_images
from pipeline import engine
from pipeline.attack.batch import AdmixPool
from pipeline.attack.loop import Iterative
from pipeline.attack.recipe import build
from pipeline.data import codec, parts, shards
from pipeline.models import malloc, registry
from pipeline.models.spec import ModelSpec, TargetSpec
from pipeline.plan.job import Job
from pipeline.plan.pools import Pools
from pipeline.plan.recipe_reader import load_recipe
from pipeline.plan.resolve import pickle_plan
from pipeline.storage import Storage
from tests import samples
from tests.bench.figures import Figure, spread_of

_ROOT = Path(__file__).parents[2]
_DEMO = _ROOT / "build" / "demo"
_CORES = len(os.sched_getaffinity(0))
_BARE_S = 20.0
_RUN_S = 110.0
_WARM_UP_S = 30.0
_STEPS = 10
_PART = 32
_GRADIENTS = 2 * _STEPS  # the penalty takes two a step


@dataclass(frozen=True)
class Workload:
    """A network as source, and the batch size that it is attacked with."""

    network: str
    batch: int

    def model(self, folder: Path) -> ModelSpec:
        """The network with the demo's weights, or with random ones."""
        if self.network == "tf_efficientnet_lite0":
            return ModelSpec(self.network, checkpoint=str(_DEMO / "weights" / "lite0.safetensors"))
        path = folder / f"{self.network}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            save_file(timm.create_model(self.network).state_dict(), path)
        return ModelSpec(self.network, checkpoint=str(path), input_size=224)

    def job(self, folder: Path, images: int) -> Job:
        """The penalty with momentum on photographs, with a target that costs next to nothing."""
        demo = load_recipe(_ROOT / "jobs" / "recipes" / "demo.toml").job()
        photographs = first_images(demo.data, 20)
        per_shard = images // (2 * _CORES)  # whole parts; two shards for each worker
        for start in range(0, images, per_shard):
            chosen = [index % 20 for index in range(start, start + per_shard)]
            some = parts.select(photographs, chosen)
            some = replace(some, keys=tuple(f"image{start + index:06d}" for index in range(per_shard)))
            records = [
                {"__key__": key, "png": codec.encode(pixels), "cls": str(label).encode()}
                for key, label, pixels in zip(some.keys, some.labels.tolist(), some.pixels, strict=True)
            ]
            (folder / f"s-{start:06d}.tar").write_bytes(shards.write_tar(records))
        target = folder / "target.safetensors"
        save_file(timm.create_model("test_resnet").state_dict(), target)
        return Job(
            data=replace(demo.data, name="bench", shards=(f"{folder}/*.tar",), part_size=_PART),
            sources=(self.model(folder),),
            attacks=(_attack(),),
            targets=(TargetSpec("test_resnet", checkpoint=str(target), input_size=64),),
            batch_size=self.batch,
        )


def _attack() -> Iterative:
    attack = build("gnp+mi", epsilon=Fraction(8, 255), steps=_STEPS)
    assert isinstance(attack, Iterative)
    return attack


def pipeline() -> list[Figure]:
    """Measures each network with small and large batches."""
    assets.prepare(_DEMO)
    figures: list[Figure] = []
    for network in ("tf_efficientnet_lite0", "resnet50"):
        for batch in (8, 32):
            figures += _measure(Workload(network, batch))
    return figures


def _measure(workload: Workload) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = _bare_loops(workload, folder)
        images = 2 * _CORES * _PART * math.ceil(_RUN_S * sum(before) / _PART / (2 * _CORES))
        rate, workers = _run(workload, folder, images)
        after = _bare_loops(workload, folder)
    bare = [sum(before), sum(after)]
    called = f"{workload.network}, batches of {workload.batch}"
    return [
        spread_of(f"{called}: {_CORES} bare loops", bare, "images/s"),
        Figure(f"{called}: a run", rate, "images/s"),
        Figure(f"{called}: a run, of the bare loops", rate / (sum(bare) / 2), "×", None, 0.95),
        spread_of(f"{called}: page faults per gradient", [each["faults"] for each in workers], "", -100),
        spread_of(f"{called}: busy share of a worker", [each["busy"] for each in workers], ""),
    ]


def _bare_loops(workload: Workload, folder: Path) -> list[float]:
    """Images per second of each of as many loops as there are cores, at the same time."""
    code = "import sys; from tests.bench.pipeline import bare_loop; bare_loop(*sys.argv[1:])"
    command = [sys.executable, "-c", code, workload.network, str(workload.batch), str(folder)]
    workload.model(folder)  # its weights are made once
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    loops = [
        subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(_CORES)
    ]
    return [float(json.loads(loop.communicate()[0].splitlines()[-1])["rate"]) for loop in loops]


def bare_loop(network: str, batch: str, folder: str) -> None:
    """Attacks the same images for some time, and prints the images per second as JSON."""
    torch.set_num_threads(1)
    malloc.keep_freed_memory()
    workload = Workload(network, int(batch))
    demo = load_recipe(_ROOT / "jobs" / "recipes" / "demo.toml").job()
    some = parts.select(first_images(demo.data, 20), [index % 20 for index in range(workload.batch)])
    with tempfile.TemporaryDirectory() as store:
        storage = Storage(store, create=True)
        resolved = registry.resolve_source(workload.model(Path(folder)), storage, classes=1000)
        source = registry.load_source(resolved, storage, classes=1000, device=torch.device("cpu"))
    attack = _attack()
    images, keys = codec.to_float(some.pixels), [str(index) for index in range(workload.batch)]
    pool = AdmixPool(some.pixels, some.labels)
    replace(attack, steps=1)(source, images, some.labels, keys, pool=pool)
    faults, started, count = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter(), 0
    while time.perf_counter() - started < _BARE_S:
        attack(source, images, some.labels, keys, pool=pool)
        count += workload.batch
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    rate = count / (time.perf_counter() - started)
    sys.stdout.write(json.dumps({"rate": rate, "faults": faults / (count * _GRADIENTS / workload.batch)}) + "\n")


def _run(workload: Workload, folder: Path, images: int) -> tuple[float, list[dict[str, float]]]:
    """Images per second of a run, and each generator's page faults per gradient and share of a core."""
    job = workload.job(folder, images)
    store = Storage(f"{folder}/store", create=True)
    plan = pickle_plan(samples.make_plan(job, store.url))
    watch = _Watch()
    outcome = engine.run_plan(plan, store.url, pools=Pools())
    workers = watch.stop()
    assert not outcome.failed, outcome.failed
    originals = [stored.modified for stored in store.list("markers/original")]
    adversarial = [stored.modified for stored in store.list("markers/adversarial")]
    seconds = max(adversarial) - min(originals)
    gradients_per_s = outcome.made.images * _GRADIENTS / workload.batch / len(workers) / seconds
    return outcome.made.images / seconds, [
        {"faults": worker["faults"] / worker["at"] / gradients_per_s, "busy": worker["cpu_s"] / worker["at"]}
        for worker in workers
    ]


class _Watch:
    """Page faults and processor time of every generator, read off the system from its first half minute's work on."""

    def __init__(self) -> None:
        self._samples: dict[int, list[dict[str, float]]] = defaultdict(list)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> list[dict[str, float]]:
        """What each generator has used since then, and in how many seconds (`at`)."""
        self._stop.set()
        self._thread.join()
        used = []
        for readings in self._samples.values():
            warm = [each for each in readings if each["cpu_s"] - readings[0]["cpu_s"] > _WARM_UP_S]
            if len(warm) > 1:
                used.append({name: warm[-1][name] - warm[0][name] for name in warm[0]})
        return used

    def _watch(self) -> None:
        while not self._stop.wait(2.0):
            for process in psutil.process_iter(["pid", "cmdline"]):
                if any(part.startswith("ray::Generator") for part in process.info["cmdline"] or ()):
                    self._read(process)

    def _read(self, process: Any) -> None:
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            times = process.cpu_times()
        except (OSError, psutil.Error):
            return
        used = {"faults": float(fields[7]), "cpu_s": times.user + times.system, "at": time.monotonic()}
        self._samples[process.pid].append(used)
