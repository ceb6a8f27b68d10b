"""How fast, and where the time goes; no test, but a program: `make bench`, or `python -m tests.bench --only files`.

    gradients   ours beside other libraries' loops on the same network, images and threads (`python -m jobs benchmark`)
    agreement   whether what is fast is the same attack: signs of gradients, and success end to end, in bfloat16 too
    profile     where a gradient's time goes, before and after
    exact       the exact penalty's product by each route: time and memory
    pipeline    images a second of the whole generator stage, beside the bare attack on the same images in memory
    engine      what handing an item out costs: with workers that sleep, and with workers that do nothing
    loader      images a second for training: ours, plain WebDataset's, a folder of PNGs
    files       encoding, decoding, tars, hashing, and a store's puts and gets
    growth      time and memory over images, steps, targets and shards

Each part runs in a process of its own. What they found goes to build/bench/, as JSON, with its bar beside each figure.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from infra import local_s3
from jobs.demo import assets
from jobs.runners.curvature import first_images
from pipeline.attack.batch import Pool
from pipeline.data import codec, parts
from pipeline.ledger import Ledger
from pipeline.models import malloc, registry
from pipeline.plan import recipe
from pipeline.plan.external import Foreign, ForeignAttack
from pipeline.plan.outline import Item
from pipeline.stages import Generator, Scorer
from pipeline.storage import Storage
from tests import peers, samples, scale
from tests.bench.agreement import agreement
from tests.bench.engine import engine
from tests.bench.exact import BATCH, ROUTES, route
from tests.bench.figures import Figure, seconds, spread_of
from tests.bench.loader import loader
from tests.bench.profile import profiled

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "bench"
IMAGENET_TRAIN = 1_281_167


# --- pipeline ---------------------------------------------------------------------------------------------------------


def pipeline() -> list[Figure]:
    """The generator stage on the demo's photographs, as a worker of one thread does it, beside the attack alone."""
    torch.set_num_threads(1)
    malloc.keep()
    assets.prepare(ROOT / "build" / "demo")
    job = recipe.load(ROOT / "jobs" / "recipes" / "demo.toml").job()
    attacks = tuple(each for each in job.attacks if each.name.startswith("gnp"))[:1]
    # Parts of one batch, so that both take as many images at a time: fewer cost more each.
    job = replace(job, attacks=attacks, data=replace(job.data, part_size=10))
    (attack,) = job.attacks
    assert not isinstance(attack, ForeignAttack)
    size = job.batch_size
    assert size != "auto"
    bare: list[float] = []
    whole: list[float] = []
    ratios, images = [], first_images(job.data, 1000)
    with tempfile.TemporaryDirectory() as folder:
        planned = samples.resolve(job, f"{folder}/models")
        (resolved,) = planned.sources
        assert not isinstance(resolved, Foreign)
        models, cpu = Storage(f"{folder}/models"), torch.device("cpu")
        source = registry.load_source(resolved, models, classes=1000, device=cpu)

        def attack_alone(number: int) -> None:
            batch = slice(size * number, size * (number + 1))
            pixels, labels, keys = images.pixels[batch], images.labels[batch], images.keys[batch]
            made = attack(source, codec.to_float(pixels), labels, keys, pool=Pool(pixels, labels))
            codec.quantise(made, pixels, attack.epsilon, attack.norm)

        def shard_to_store(stage: Generator, items: Sequence[Item], number: int) -> None:
            if number + 1 < len(items):
                stage.prepare(items[number + 1], lambda: None)  # as a worker does
            stage.run(items[number])

        attack_alone(0)  # the first run pays for what is made once: kernels, and the heap
        for turn in range(6):
            ledger = Ledger(Storage(f"{folder}/{turn}", create=True))
            stage = Generator(planned, ledger, cpu)
            stage._loaded = (resolved.id, source)
            items = samples.pending(planned, ledger)
            for number in range(len(items)):  # each of one batch; near in time, for a machine's pace wanders
                sides: list[tuple[list[float], Callable[[], object]]] = [
                    (bare, functools.partial(attack_alone, number)),
                    (whole, functools.partial(shard_to_store, stage, items, number)),
                ]
                for rates, function in sides if (turn + number) % 2 else reversed(sides):
                    rates.append(size / seconds(function))
                ratios.append(whole[-1] / bare[-1])
    return [
        spread_of(f"{attack.name}: the attack alone", bare, "images/s"),
        spread_of(f"{attack.name}: shard to store", whole, "images/s"),
        spread_of("shard to store, of the attack alone", ratios, "×", 0.95),
    ]


# --- exact -----------------------------------------------------------------------------------------------------------


def exact() -> list[Figure]:
    """The routes to the exact penalty's product, with convolutions as torch has them and as they are here."""
    found: list[Figure] = []
    for called, fast in (("torch's own", False), ("fused", True)):
        for name in ROUTES:
            if (fast, name) == (True, "forward over reverse"):
                continue  # a function of one's own has no forward derivative, and needs none: see what it costs above
            took = _in_a_process(route, name, json.dumps(fast))
            found.append(Figure(f"{name}, convolutions {called}", 1000 * took["seconds"] / BATCH, "ms an image"))
            found.append(Figure(f"{name}, convolutions {called}: memory", took["peak_mb"] / BATCH, "MB an image"))
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def files() -> list[Figure]:
    """MB of pixels, or of bytes, a second on one thread; the least of three tries is the slowest."""
    torch.set_num_threads(1)
    assets.prepare(ROOT / "build" / "demo")
    job = recipe.load(ROOT / "jobs" / "recipes" / "demo.toml").job()
    images = first_images(job.data, 20)
    torch.manual_seed(0)
    noise = 16 * (2 * torch.randint(0, 2, images.pixels.shape) - 1)
    pixels = (images.pixels.int() + noise).clamp(0, 255).to(torch.uint8)
    encoded = [codec.encode(each) for each in pixels]
    tar = parts.files(images, pixels)
    raw_mb, tar_mb = pixels.numel() / 1e6, len(tar) / 1e6
    per_image = [1000 * seconds(lambda: [codec.encode(each) for each in pixels]) / len(pixels) for _ in range(3)]
    found = [
        spread_of("encoding a 224-pixel image", per_image, "ms", -5),
        spread_of("encoding", [raw_mb * 1000 / len(pixels) / each for each in per_image], "MB/s"),
        _rate("decoding", lambda: [codec.decode(each) for each in encoded], raw_mb),
        _rate("a part's tar, encoding and all", lambda: parts.files(images, pixels), raw_mb),
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


# --- growth -----------------------------------------------------------------------------------------------------------


def growth() -> list[Figure]:
    """Straight lines: the share of the variance that one explains, and its slope."""
    grown = {
        "images": [{"images": n} for n in (100, 200, 400, 800)],
        "steps": [{"steps": n} for n in (5, 10, 20, 40)],
        # So many that they cost more than all else of a run: beside it a target's fifth of a second is lost in noise.
        "targets": [{"targets": n, "images": 400, "steps": 1} for n in (4, 8, 16, 32)],
        "shards": [{"shards": n} for n in (1, 2, 4, 8)],
    }
    found = []
    for over, settings in grown.items():
        sizes = [float(each[over]) for each in settings]
        tried = [_in_a_process(one_size, json.dumps(each)) for each in settings]
        for what, unit in (("seconds", "s"), ("peak_mb", "MB")):
            values = [each[what] for each in tried]
            slope, _ = np.polyfit(sizes, values, 1)
            straight = float(np.corrcoef(sizes, values)[0, 1] ** 2)
            found.append(Figure(f"{what.partition('_')[0]} over {over}", float(slope), f"{unit} more for one more"))
            if what == "seconds":
                found.append(
                    Figure(f"{what} over {over}: share that a straight line explains", straight, "", None, 0.98)
                )
    return found


def one_size(told: str) -> dict[str, float]:
    """Both stages with the tiny network: images a shard, steps, targets and shards as told."""
    size = {"images": 50, "steps": 10, "targets": 1, "shards": 1} | json.loads(told)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        checkpoint = Path(folder) / "tiny.safetensors"
        save_file(timm.create_model("test_resnet", num_classes=samples.CLASSES).state_dict(), checkpoint)
        for shard in range(size["shards"]):
            inside = [samples.sample(number) for number in range(size["images"])]
            samples.write_shard(Path(folder) / "in" / f"s-{shard}.tar", inside)
        job = samples.tiny_job(Path(folder) / "in", checkpoint, attacks=(samples.attack("mi", steps=size["steps"]),))
        targets = tuple(replace(job.targets[0], name=f"tiny{number}") for number in range(size["targets"]))
        planned = samples.resolve(replace(job, targets=targets, batch_size=16, data=replace(job.data, part_size=50)))
        ledger, cpu = Ledger(Storage(f"{folder}/store")), torch.device("cpu")
        items = samples.pending(planned, ledger)
        generator, scorer = Generator(planned, ledger, cpu), Scorer(planned, ledger, cpu)

        def both() -> None:
            for item in items:
                generator.run(item)
                scorer.run(item)

        return {"seconds": seconds(both), "peak_mb": scale.peak_mb()}


# --- the program ------------------------------------------------------------------------------------------------------


def _in_a_process(function: Callable[..., Any], *arguments: str) -> Any:
    module = "tests.bench.__main__" if function.__module__ == "__main__" else function.__module__
    called = function.__name__
    code = f"import json, sys; from {module} import {called}; print(json.dumps({called}(*sys.argv[1:])))"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


PARTS = {
    "agreement": agreement,
    "profile": profiled,
    "exact": exact,
    "pipeline": pipeline,
    "engine": engine,
    "loader": loader,
    "files": files,
    "growth": growth,
}


def told(part: str) -> list[dict[str, Any]]:
    """The figures of a part, as JSON values."""
    figures: list[Figure] = PARTS[part]()
    return [{**asdict(each), "holds": each.holds} for each in figures]


def estimate(gradients: dict[str, Any]) -> list[Figure]:
    """What ImageNet's training set takes under ten steps with the penalty, by the rates measured."""
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
    """Measures, shows and writes."""
    console, file, ok = Console(width=140), OUT / "bench.json", True
    OUT.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if only in ("", "gradients"):
        peers.fetch()
        environment = {**os.environ, "PYTHONPATH": str(peers.OUT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "jobs", "benchmark", "--out", str(OUT)]
        ok = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0 and ok
        measured = json.loads((OUT / "gradients-cpu.json").read_text())
        found["estimate"] = [{**asdict(each), "holds": True} for each in estimate(measured)]
    for part in PARTS:
        if only in ("", part):
            found[part] = _in_a_process(told, part)
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
