"""Filled stores for the tests of versions, datasets and training."""

from pathlib import Path
from typing import Any

import torch

from pipeline.ledger import Ledger
from pipeline.maintenance.finalize import Version
from pipeline.plan.job import Job
from pipeline.plan.resolve import resolve_job
from pipeline.results import schema
from pipeline.stages import Generator, Scorer
from pipeline.storage import Storage
from tests.samples import attack, list_pending, sample, tiny_job, write_shard

# What `two_shard_job` makes.
IMAGES = 10 + 3
ATTACKS = 2
ROWS = {"clean": IMAGES, "transfer": IMAGES * ATTACKS}


def new_ledger(folder: Path) -> Ledger:
    return Ledger(Storage(str(folder), create=True))


def fill_store(job: Job, ledger: Ledger, *, workers: int = 1) -> None:
    """Runs both stages of a job in this process, without Ray."""
    planned = resolve_job(job, ledger.storage)
    ledger.record_plan(planned.to_record())
    generator, scorer = (stage(planned, ledger, torch.device("cpu")) for stage in (Generator, Scorer))
    for item in list_pending(planned, ledger, workers=workers):
        generator.run(item)
        scorer.run(item)


def two_shard_job(folder: Path, checkpoint: Path, **settings: Any) -> Job:
    """Two shards of 10 and 3 images, two attacks, and a target that is also the source."""
    write_shard(folder / "s-0.tar", [sample(index) for index in range(10)])
    write_shard(folder / "s-1.tar", [sample(100 + index) for index in range(3)])
    return tiny_job(folder, checkpoint, attacks=(attack("noise"), attack("gnp+mi", name="target+mi")), **settings)


def path_of(ledger: Ledger, key: str) -> Path:
    return Path(ledger.storage.url_of(key))


def compacted_tables(ledger: Ledger, version: Version, kind: str) -> list[schema.Table]:
    keys = sorted(item.key for item in ledger.storage.list(version.folder) if f"/{kind}/" in item.key)
    return [schema.read_parquet(ledger.storage.get(key), name=key) for key in keys]
