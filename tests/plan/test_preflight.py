"""The preflight: models are loaded before workers start, and the share of scoring is measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.plan.preflight import preflight, scoring_share
from pipeline.plan.resolve import Plan, pickle_plan
from pipeline.storage import Storage
from tests.samples import SIDE, attack, make_plan, sample, tiny_job, write_shard


@pytest.fixture
def planned(tmp_path: Path, tiny_checkpoint: Path) -> Plan:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    job = tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi", steps=10), attack("gnp+mi", steps=10)))
    targets = (*job.targets, replace(job.targets[0], name="behind", defense="rp+bits"))
    return make_plan(replace(job, targets=targets))


def test_scoring_share_weighs_gradients_and_predictions(planned: Plan) -> None:
    (source,), (plain, behind) = planned.sources, planned.targets
    # Thirty gradients of 2 s, and of each target a prediction of the clean image and of two adversarial ones.
    share = scoring_share(planned, {source.id: 2.0}, {plain.id: 1.0, behind.id: 30.0})
    assert share == pytest.approx(3 * 31 / (3 * 31 + 30 * 2))


def test_preflight_loads_everything_and_returns_the_share(planned: Plan, tmp_path: Path) -> None:
    assert planned.job.data.preparation.crop == SIDE
    share = preflight(pickle_plan(planned).pickled, Storage(str(tmp_path / "store")))
    assert 0 < share < 1
