"""Time and memory of both stages over the number of images, steps, targets and shards."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from pipeline.ledger import Ledger
from pipeline.stages import Generator, Scorer
from pipeline.storage import Storage
from tests import samples
from tests.bench.figures import Figure, in_new_process, seconds
from tests.scale.processes import peak_mb


def growth() -> list[Figure]:
    """Fits straight lines: slope, and share of the explained variance."""
    sizes_by_axis = {
        "images": [{"images": n} for n in (100, 200, 400, 800)],
        "steps": [{"steps": n} for n in (5, 10, 20, 40)],
        # Enough targets to dominate the run: a target takes a fifth of a second, less than the noise of the rest.
        "targets": [{"targets": n, "images": 400, "steps": 1} for n in (4, 8, 16, 32)],
        "shards": [{"shards": n} for n in (1, 2, 4, 8)],
    }
    figures = []
    for over, settings in sizes_by_axis.items():
        sizes = [float(size[over]) for size in settings]
        results = [in_new_process(one_size, json.dumps(size)) for size in settings]
        for what, unit in (("seconds", "s"), ("peak_mb", "MB")):
            values = [result[what] for result in results]
            slope, _ = np.polyfit(sizes, values, 1)
            straight = float(np.corrcoef(sizes, values)[0, 1] ** 2)
            figures.append(Figure(f"{what.partition('_')[0]} over {over}", float(slope), f"{unit} more for one more"))
            if what == "seconds":
                figures.append(
                    Figure(f"{what} over {over}: share that a straight line explains", straight, "", None, 0.98)
                )
    return figures


def one_size(settings: str) -> dict[str, float]:
    """Runs both stages with the tiny network; `settings`: JSON with images per shard, steps, targets and shards."""
    size = {"images": 50, "steps": 10, "targets": 1, "shards": 1} | json.loads(settings)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        checkpoint = Path(folder) / "tiny.safetensors"
        save_file(timm.create_model("test_resnet", num_classes=samples.CLASSES).state_dict(), checkpoint)
        for shard in range(size["shards"]):
            shard_samples = [samples.sample(number) for number in range(size["images"])]
            samples.write_shard(Path(folder) / "in" / f"s-{shard}.tar", shard_samples)
        job = samples.tiny_job(Path(folder) / "in", checkpoint, attacks=(samples.attack("mi", steps=size["steps"]),))
        targets = tuple(replace(job.targets[0], name=f"tiny{number}") for number in range(size["targets"]))
        planned = samples.make_plan(replace(job, targets=targets, batch_size=16, data=replace(job.data, part_size=50)))
        ledger, cpu = Ledger(Storage(f"{folder}/store")), torch.device("cpu")
        items = samples.list_pending(planned, ledger)
        generator, scorer = Generator(planned, ledger, cpu), Scorer(planned, ledger, cpu)

        def both() -> None:
            for item in items:
                generator.run(item)
                scorer.run(item)

        return {"seconds": seconds(both), "peak_mb": peak_mb()}
