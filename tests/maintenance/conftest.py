import shutil
from pathlib import Path

import pytest

from pipeline.ledger import Ledger
from pipeline.plan.job import Job
from tests.maintenance.stores import fill_store, new_ledger, two_shard_job
from tests.samples import attack, sample, tiny_job, write_shard


@pytest.fixture(scope="package")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Job:
    return two_shard_job(tmp_path_factory.mktemp("in"), tiny_checkpoint)


@pytest.fixture(scope="package")
def filled_store(tmp_path_factory: pytest.TempPathFactory, job: Job) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "store"
    fill_store(job, new_ledger(folder))
    return folder


@pytest.fixture
def ledger(filled_store: Path, tmp_path: Path) -> Ledger:
    shutil.copytree(filled_store, tmp_path / "copy")
    return new_ledger(tmp_path / "copy")


@pytest.fixture(scope="package")
def sound_objects(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, bytes]:
    """Every object of a sound store, key → bytes: one shard of 6 images in two parts, two attacks."""
    folder = tmp_path_factory.mktemp("sound")
    write_shard(folder / "in" / "s-0.tar", [sample(index) for index in range(6)])
    ledger = new_ledger(folder / "store")
    fill_store(tiny_job(folder / "in", tiny_checkpoint, attacks=(attack("mi"), attack("noise"))), ledger)
    return {item.key: ledger.storage.get(item.key) for item in ledger.storage.list()}
