"""`make bench`: speed and profiles; a program, not a test: `python -m tests.bench --only files` runs one part.

    gradients   ours and other libraries' loops on the same network, images and threads (`python -m jobs benchmark`)
    agreement   agreement of the optimized model with the plain one: signs of gradients and success, in bfloat16 too
    profile     time of a gradient by kind of operation, plain and optimized
    exact       time and memory of the exact penalty's Hessian-vector product, by different methods
    pipeline    images per second of whole runs on all cores, of as many bare attack loops in processes of their own
    flow        wall time of whole runs, of bare loops that attack and score; busy share of eight logical devices
    engine      cost of scheduling an item, with workers that sleep and with workers that do nothing
    loader      images per second for training: ours, plain WebDataset, a folder of PNGs
    files       encoding, decoding, tars, hashing, and puts and gets of a store
    growth      time and memory over the number of images, steps, targets and shards

Each part runs in a new process. The figures are written to build/bench/ as JSON, with their goals.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from infra import local_s3
from jobs.demo import assets
from jobs.runners.curvature import first_images
from pipeline.data import codec, parts
from pipeline.plan.recipe_reader import load_recipe
from pipeline.storage import Storage
from tests import peers
from tests.bench.agreement import agreement
from tests.bench.engine import engine
from tests.bench.exact import BATCH, ROUTES, route
from tests.bench.figures import Figure, in_new_process, seconds, spread_of
from tests.bench.flow import flow
from tests.bench.growth import growth
from tests.bench.loader import loader
from tests.bench.pipeline import pipeline
from tests.bench.profile import profiled

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "bench"
IMAGENET_TRAIN = 1_281_167


# --- exact -----------------------------------------------------------------------------------------------------------


def exact() -> list[Figure]:
    """The methods of the exact penalty's product, with torch's convolutions and with fused ones."""
    found: list[Figure] = []
    for called, fast in (("torch's own", False), ("fused", True)):
        for name in ROUTES:
            if (fast, name) == (True, "forward over reverse"):
                continue  # custom functions have no forward derivative
            took = in_new_process(route, name, json.dumps(fast))
            found.append(Figure(f"{name}, convolutions {called}", 1000 * took["seconds"] / BATCH, "ms per image"))
            found.append(Figure(f"{name}, convolutions {called}: memory", took["peak_mb"] / BATCH, "MB per image"))
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def files() -> list[Figure]:
    """MB of pixels or bytes per second on one thread, of three tries."""
    torch.set_num_threads(1)
    assets.prepare(ROOT / "build" / "demo")
    job = load_recipe(ROOT / "jobs" / "recipes" / "demo.toml").job()
    images = first_images(job.data, 20)
    torch.manual_seed(0)
    noise = 16 * (2 * torch.randint(0, 2, images.pixels.shape) - 1)
    pixels = (images.pixels.int() + noise).clamp(0, 255).to(torch.uint8)
    encoded = [codec.encode(each) for each in pixels]
    tar = parts.encode_tar(images, pixels)
    raw_mb, tar_mb = pixels.numel() / 1e6, len(tar) / 1e6
    per_image = [1000 * seconds(lambda: [codec.encode(each) for each in pixels]) / len(pixels) for _ in range(3)]
    found = [
        spread_of("encoding a 224-pixel image", per_image, "ms", -5),
        spread_of("encoding", [raw_mb * 1000 / len(pixels) / each for each in per_image], "MB/s"),
        _rate("decoding", lambda: [codec.decode(each) for each in encoded], raw_mb),
        _rate("a part's tar, encoding and all", lambda: parts.encode_tar(images, pixels), raw_mb),
        _rate("hashing pixels", lambda: codec.pixels_sha256(pixels), raw_mb),
    ]
    with tempfile.TemporaryDirectory() as folder, local_s3.server(Path(folder)) as environment:
        os.environ.update(environment)
        for called, url in (("a folder", f"{folder}/store"), ("S3 on this machine", "s3://demo/bench")):
            storage = Storage(url, create=True)
            found.append(_rate(f"put, {called}", functools.partial(_put_all, storage, tar), 10 * tar_mb))
            found.append(_rate(f"get, {called}", functools.partial(_get_all, storage), 10 * tar_mb))
    return found


def _put_all(storage: Storage, tar: bytes) -> None:
    for number in range(10):
        storage.put(str(number), tar)


def _get_all(storage: Storage) -> None:
    for number in range(10):
        storage.get(str(number))


def _rate(what: str, function: Callable[[], object], megabytes: float) -> Figure:
    return spread_of(what, [megabytes / seconds(function) for _ in range(3)], "MB/s")


# --- the program ------------------------------------------------------------------------------------------------------


PARTS = {
    "agreement": agreement,
    "profile": profiled,
    "exact": exact,
    "pipeline": pipeline,
    "flow": flow,
    "engine": engine,
    "loader": loader,
    "files": files,
    "growth": growth,
}


def part_figures(part: str) -> list[dict[str, Any]]:
    """The figures of a part, as JSON values."""
    figures: list[Figure] = PARTS[part]()
    return [{**asdict(figure), "holds": figure.holds} for figure in figures]


def estimate(gradients: dict[str, Any]) -> list[Figure]:
    """Time for ImageNet's training set with ten steps with the penalty, from the measured rates."""
    unit = "core hours" if gradients["device"].startswith("CPU") else f"hours of {gradients['device']}"
    return [
        Figure(
            f"1.28 M images, 10 steps with the penalty, on {rate['network']}",
            IMAGENET_TRAIN * 20 / rate["gradients_per_s"][0] / 3600,
            unit,
        )
        for each in gradients["networks"]
        for rate in each["rates"]
        if (rate["attack"], rate["name"]) == ("look-ahead", "ours")
    ]


def main(only: str = "") -> None:
    """Measures the parts, prints a table and writes JSON."""
    console, file, ok = Console(width=140), OUT / "bench.json", True
    OUT.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if only in ("", "gradients"):
        peers.fetch()
        environment = {**os.environ, "PYTHONPATH": str(peers.OUT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "jobs", "benchmark", "--out", str(OUT)]
        ok = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0 and ok
        measured = json.loads((OUT / "gradients-cpu.json").read_text())
        found["estimate"] = [{**asdict(figure), "holds": True} for figure in estimate(measured)]
    for part in PARTS:
        if only in ("", part):
            found[part] = in_new_process(part_figures, part)
            file.write_text(json.dumps(found, indent=1) + "\n")
    table = Table(title="make bench")
    for name in ("part", "what", "found", "least … most", "wanted", ""):
        table.add_column(name)
    for part, rows in found.items():
        for row in rows:
            spread = "" if row["spread"] is None else "{:.3g} … {:.3g}".format(*row["spread"])
            wanted = row["wanted"]
            bar = "" if wanted is None else f"{'at least' if wanted >= 0 else 'at most'} {abs(wanted):g}"
            verdict = "" if wanted is None else "holds" if row["holds"] else "[bold red]MISSED[/bold red]"
            table.add_row(part, row["what"], f"{row['value']:.3g} {row['unit']}", spread, bar, verdict)
            ok = ok and row["holds"]
    console.print(table)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        typer.run(main)
