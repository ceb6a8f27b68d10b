import shutil
from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.ledger import Ledger
from pipeline.storage import Storage
from tests.maintenance.stores import fill_store
from tests.samples import attack, sample, tiny_job, write_shard


@pytest.fixture(scope="package")
def filled_store(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """30 images of two shards in parts of 4 under two attacks, scored by the source."""
    folder = tmp_path_factory.mktemp("filled")
    for shard in range(2):
        write_shard(folder / "in" / f"s-{shard}.tar", [sample(100 * shard + index) for index in range(15)])
    attacks = attack("noise", epsilon=Fraction(2, 255)), attack("gnp+mi", name="gnp+mi")
    ledger = Ledger(Storage(f"{folder}/store", create=True))
    fill_store(tiny_job(folder / "in", tiny_checkpoint, attacks=attacks), ledger)
    return folder / "store"


@pytest.fixture
def store(filled_store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(filled_store, tmp_path / "store")
