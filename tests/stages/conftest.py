"""Fixtures for the tests of the stages."""

from pathlib import Path

import pytest

from pipeline.plan.job import Job
from tests.samples import attack, sample, tiny_job, write_shard


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path) -> Job:
    """Two shards of ten and three images, in parts of four, under two attacks."""
    write_shard(tmp_path / "in" / "s-0.tar", [sample(index) for index in range(10)])
    write_shard(tmp_path / "in" / "s-1.tar", [sample(100 + index) for index in range(3)])
    return tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("noise"), attack("gnp+mi")))
