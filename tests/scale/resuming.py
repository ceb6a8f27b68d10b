"""Row a: resuming a plan with a million markers on a real S3 server, without and with its index."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore

from infra import local_s3
from pipeline.data.sample import Part
from pipeline.ledger import Ledger
from pipeline.ledger.finished_shards import add_to_index
from pipeline.plan import outline
from pipeline.plan.outline import Outline
from pipeline.storage import Storage
from tests.scale.plans import SHARDS, large_plan
from tests.scale.processes import ROOT, measured, peak_mb

PARTS = 100
# (shard, part) → the index of the one of its four markers that is missing.
UNFINISHED = {(3, 0): 0, (3, 1): 1, (3, 99): 3, (500, 50): 2, (500, 51): 3, (2499, 0): 1, (2499, 99): 3}


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
