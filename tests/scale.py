"""`make scale`: time, memory and requests at scale; a program, not a test: `python -m tests.scale --only a`.

    a    resuming a plan with a million markers on a real S3 server, without and with its index: time, memory, requests
    b    a shard of 5 GB of large photographs through both stages: peak memory of the process
    c    the driver's memory after 1,000, 10,000 and 100,000 items, with a real Ray and workers that do nothing

Each row measures a separate process, including imports, and adds its figures to build/scale.json.
"""

import asyncio
import contextlib
import gc
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import obstore
import ray
import typer
from rich.console import Console
from rich.table import Table

from infra import local_s3
from pipeline.data.sample import Part, ShardFile
from pipeline.engine import actors, scheduler
from pipeline.engine.worker import ItemResult, Worker
from pipeline.ledger import Ledger, make_id
from pipeline.ledger.finished_shards import add_to_index
from pipeline.plan import outline
from pipeline.plan.outline import Item, Outline, PickledPlan, ShardSelection
from pipeline.plan.pools import Node, Pools, size_pools
from pipeline.storage import Storage

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "scale.json"
SHARDS, PARTS = 2_500, 100
# (shard, part) → the index of the one of its four markers that is missing.
UNFINISHED = {(3, 0): 0, (3, 1): 1, (3, 99): 3, (500, 50): 2, (500, 51): 3, (2499, 0): 1, (2499, 99): 3}
PHOTOGRAPHS, SIDE = 500, 1862
ITEMS = (1_000, 10_000, 100_000)


def peak_mb() -> float:
    """Peak memory of this process; `ru_maxrss` would include that of the process it was forked from."""
    return _status_kb("VmHWM") / 1000


def memory_mb() -> float:
    """Current memory of this process."""
    return _status_kb("VmRSS") / 1000


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def measured(function: Callable[..., dict[str, Any]], *arguments: object, **environment: str) -> dict[str, Any]:
    """The result of a function of this file in a new process."""
    code = f"import json, sys; from tests import scale; print(json.dumps(scale.{function.__name__}(*sys.argv[1:])))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# --- a: resuming ------------------------------------------------------------------------------------------------------


def large_plan() -> Outline:
    """A plan of 2,500 shards, one source, one attack and one target: four markers per part."""
    shards = [ShardFile(f"s3://in/s-{n:05d}.tar", f"s-{n:05d}", 10**9, f"v{n}") for n in range(SHARDS)]
    model = {"model": "resnet50.tv_in1k", "digest": "0" * 64, "policy": "direct", "input_size": 224}
    described = {
        "dataset": make_id("imagenet", {"part_size": 512}),
        "shards": [shard.name for shard in shards],
        "sources": {make_id("resnet50", model): model},
        "attacks": {make_id("gnp+mi", {"steps": 10}): {"steps": 10}},
        "targets": {make_id("resnet50", model): model},
    }
    return Outline(described, tuple(ShardSelection(shard, None) for shard in shards))


def large_markers(planned: Outline) -> Iterator[str]:
    (source,) = planned.sources
    for shard, take in enumerate(planned.selections):
        for index in range(PARTS):
            units = outline.part_units(planned, source, Part(take.shard.name, index, PARTS))
            left_out = UNFINISHED.get((shard, index))
            yield from (unit.marker_key for place, unit in enumerate(units) if place != left_out)


async def fill(store: Storage, keys: Iterator[str]) -> int:
    """Puts small objects, many at a time; returns their number."""
    count = 0

    async def put() -> None:
        nonlocal count
        for key in keys:
            await obstore.put_async(store._store, key, b"{}", use_multipart=False)
            count += 1

    await asyncio.gather(*(put() for _ in range(64)))
    return count


def resume(url: str) -> dict[str, Any]:
    """Decides what is left of the large plan, in a process with a driver's imports."""
    requests: Counter[str] = Counter()
    with contextlib.ExitStack() as counting:
        for name in ("list", "get", "head", "put"):
            counting.enter_context(_count_requests(name, requests))
        planned, ledger, before = large_plan(), Ledger(Storage(url)), peak_mb()
        started, cpu = time.monotonic(), time.process_time()
        committed = ledger.list_committed(outline.all_scopes(planned), shards=planned.record["shards"])
        listed = time.monotonic()
        items = outline.pending_items(planned, committed)
        ended, cpu = time.monotonic(), time.process_time() - cpu
    unfinished = {f"s-{shard:05d}" for shard, _ in UNFINISHED}
    assert [item.selection.shard.name for item in items] == sorted(unfinished), "the plan is wrong"
    assert sum(bits.bit_count() for found in committed.scopes.values() for _, bits in found.values()) == (
        4 * SHARDS * PARTS - len(UNFINISHED)
    )
    return {
        "seconds": round(ended - started, 2),
        "listing_s": round(listed - started, 2),
        "cpu_s": round(cpu, 2),
        "peak_mb": round(peak_mb()),
        "before_mb": round(before),
        "requests": dict(requests),
    }


def write_index(url: str) -> dict[str, Any]:
    """What a run adds to the index of finished shards on the way, all at once."""
    planned, ledger = large_plan(), Ledger(Storage(url))
    committed = ledger.list_committed(outline.all_scopes(planned), shards=planned.record["shards"])
    started = time.monotonic()
    add_to_index(ledger.storage, committed, planned.record["shards"])
    return {"seconds": round(time.monotonic() - started, 2), "records": len(list(ledger.storage.list("finished")))}


_STATUS_PROGRAM = """
import sys, time
started = time.monotonic()
from jobs import cli
cli.run()
kb = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.monotonic() - started, int(kb) / 1000)
"""


def measure_status(url: str) -> dict[str, Any]:
    """Time and memory of `gnp status`, including imports."""
    command = [sys.executable, "-c", _STATUS_PROGRAM, "status", url]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    total, missing = SHARDS * PARTS, Counter(UNFINISHED.values())
    assert f"attacked {total - missing[1]}/{total} parts" in output, output
    seconds, peak = output.splitlines()[-1].split()
    return {"seconds": round(float(seconds), 2), "peak_mb": round(float(peak))}


@contextlib.contextmanager
def _count_requests(name: str, requests: Counter[str]) -> Iterator[None]:
    real = getattr(obstore, name)

    def count(*arguments: Any, **options: Any) -> Any:
        requests[name] += 1
        return real(*arguments, **options)

    setattr(obstore, name, count)
    yield
    setattr(obstore, name, real)


def row_a() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, local_s3.server(Path(folder)) as environment:
        os.environ.update(environment)
        url, started = "s3://demo/scale", time.monotonic()
        keys = asyncio.run(fill(Storage(url), large_markers(large_plan())))
        filled = time.monotonic() - started
        Ledger(Storage(url)).record_plan(large_plan().record)
        without_index = measured(resume, url) | {"status": measure_status(url)}
        index = measured(write_index, url)
        with_index = measured(resume, url) | {"status": measure_status(url)}
    small = all(
        peak < 500 for each in (without_index, with_index) for peak in (each["peak_mb"], each["status"]["peak_mb"])
    )
    fast = with_index["seconds"] < 5 and with_index["status"]["seconds"] < 5
    lists, cpu_s = without_index["requests"]["list"], without_index["cpu_s"]
    return {
        "parts": SHARDS * PARTS,
        "keys": keys,
        "filled_s": round(filled),
        "without_index": without_index,
        "index": index,
        "with_index": with_index,
        "ok": small and fast and not without_index["requests"].get("get"),
        # At 50 ms per listing, one after another or as many at a time as the ledger has readers; this process's CPU.
        "extrapolated_without_index": [
            {
                "keys": many,
                "requests": round(lists * many / keys),
                "one_stream_s": round(lists * many / keys * 0.05),
                "32_streams_s": round(lists * many / keys * 0.05 / 32, 1),
                "cpu_s": round(cpu_s * many / keys, 1),
            }
            for many in (4_000_000, 20_000_000)
        ],
    }


# --- b: a large shard -------------------------------------------------------------------------------------------------


def large_shard(path: Path) -> int:
    """Writes 500 PPMs of noise, 10 MB each, which decode fast; returns the size of the tar."""
    noise = os.urandom(SIDE * SIDE * 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(PHOTOGRAPHS):
            image = b"P6 %d %d 255\n" % (SIDE, SIDE) + noise[index * 997 :] + noise[: index * 997]
            for name, data in ((f"{index:05d}.ppm", image), (f"{index:05d}.cls", b"%d" % (index % 10))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path.stat().st_size


def both_stages(folder: str) -> dict[str, Any]:
    """The noise attack and its scores on every shard of FOLDER/in, with the tiny network."""
    import timm
    import torch
    from safetensors.torch import save_file

    from pipeline.stages import Generator, Scorer
    from tests import samples

    torch.set_num_threads(1)
    torch.manual_seed(0)
    checkpoint = Path(folder) / "tiny.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=samples.CLASSES).state_dict(), checkpoint)
    job = samples.tiny_job(Path(folder) / "in", checkpoint, attacks=(samples.attack("noise"),), part_size=512)
    planned = samples.make_plan(job)
    ledger, cpu, before = Ledger(Storage(f"{folder}/store")), torch.device("cpu"), peak_mb()
    started = time.monotonic()
    (item,) = samples.list_pending(planned, ledger)
    generated = Generator(planned, ledger, cpu).run(item)
    generator_peak_mb = peak_mb()
    scored = Scorer(planned, ledger, cpu).run(item)
    assert (generated.images, scored.images) == (PHOTOGRAPHS, 2 * PHOTOGRAPHS), "images are missing"
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_mb": round(peak_mb()),
        "peak_generating_mb": round(generator_peak_mb),
        "before_mb": round(before),
        "images": generated.images,
    }


def row_b() -> dict[str, Any]:
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        size_bytes = large_shard(Path(folder) / "in" / "s-0.tar")
        found = measured(both_stages, folder, TMPDIR=folder, OMP_NUM_THREADS="1")
    return {**found, "shard_bytes": size_bytes, "ok": found["peak_mb"] < 2000}


# --- c: the driver ----------------------------------------------------------------------------------------------------


class Idle(Worker):
    """A worker that finishes every item at once."""

    def __init__(self, *_: object) -> None:
        self._stopping = threading.Event()

    def load(self) -> None:
        """Loads nothing."""

    def run(self, item: Item, attempt: int, following: Item | None = None) -> ItemResult:
        del item, attempt, following
        return ItemResult("done")


def hand_out(budget_s: str) -> dict[str, Any]:
    """The driver's memory after each number of ITEMS; numbers beyond the time budget are left out."""
    setattr(actors, "Worker", Idle)  # noqa: B010  # mypy insists on the class's own type
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    pools = Pools(generators=1, scorers=1)
    items = [_item(number) for number in range(max(ITEMS))]  # created first: the plan's own memory is no growth
    found: dict[str, Any] = {"before_mb": round(memory_mb()), "after": []}
    with tempfile.TemporaryDirectory() as folder:
        store = Storage(folder)
        planned = PickledPlan(replace(large_plan(), selections=()), b"")
        running = scheduler.Scheduler(planned, "plan", store, size_pools(pools, [Node(2, 0)], scoring=0.25), pools)
        done, started = 0, time.monotonic()
        for count in ITEMS:
            spent = time.monotonic() - started
            if done and spent * (count - done) / done > float(budget_s):
                found["left_out"] = f"{count} items would take {spent * count / done:.0f} s"
                break
            running.work(items[done:count], threading.Event())
            gc.collect()
            seconds = round(time.monotonic() - started, 1)
            found["after"].append({"items": count, "mb": round(memory_mb(), 1), "seconds": seconds})
            done = count
        running.close()
    ray.shutdown()
    return found


def _item(number: int) -> Item:
    name = f"s-{number:06d}"
    return Item(
        ShardSelection(ShardFile(f"s3://in/{name}.tar", name, 10**9, f"v{number}"), None), "source-000000000000"
    )


def row_c() -> dict[str, Any]:
    found = measured(hand_out, 360, OMP_NUM_THREADS="1")
    first, *_, last = found["after"]
    growth_mb = 1000 * (last["mb"] - first["mb"]) / (last["items"] - first["items"])
    flat = last["items"] == max(ITEMS) and growth_mb < 1
    return {**found, "mb_per_1000_items": round(growth_mb, 3), "ok": flat and last["mb"] < 500}


# --- the program ------------------------------------------------------------------------------------------------------


def main(only: Literal["", "a", "b", "c"] = "") -> None:
    """Measures the rows, prints them and writes them to build/scale.json."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    console, ok = Console(), True
    for name, row in (("a", row_a), ("b", row_b), ("c", row_c)):
        if only not in ("", name):
            continue
        found = row()
        ok = ok and found["ok"]
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps((json.loads(OUT.read_text()) if OUT.exists() else {}) | {name: found}, indent=1))
        table = Table("figure", "value", title=f"row {name}")
        for key, value in found.items():
            lines = value if isinstance(value, list) else [value]
            for line in lines:
                table.add_row(key, json.dumps(line))
        console.print(table)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    typer.run(main)
