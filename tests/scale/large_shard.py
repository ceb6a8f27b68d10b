"""Row b: a shard of 5 GB of large photographs through both stages."""

import io
import os
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.ledger import Ledger
from pipeline.storage import Storage
from tests.scale.processes import ROOT, measured, peak_mb

PHOTOGRAPHS, SIDE = 500, 1862


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
