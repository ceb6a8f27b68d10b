"""What the work will cost, told before it is begun."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.attack.batch import Pool, Tally
from pipeline.attack.cost import gradients
from pipeline.attack.gradient_transforms import GradientNormPenalty
from pipeline.attack.recipe import build
from pipeline.plan import resolve as plans
from pipeline.plan.preflight import preflight, scoring_share
from pipeline.storage import Storage
from tests.samples import SIDE, attack, resolve, sample, tiny_job, write_shard

EPSILON = Fraction(8, 255)


@pytest.mark.parametrize(
    ("combination", "settings", "expected"),
    [
        ("noise", {}, 0),
        ("fgsm", {}, 1),
        ("mi", {"steps": 10}, 10),
        ("ni+di+ti", {"steps": 10, "target_class": 2}, 10),
        ("gnp+mi", {"steps": 10}, 20),
        ("gnp+mi+si", {"steps": 10}, 100),
        ("admix+mi", {"steps": 10}, 150),
        ("mi", {"steps": 1_000_000}, 1_000_000),
    ],
)
def test_gradients_are_counted_without_a_model(combination: str, settings: dict[str, int], expected: int) -> None:
    assert gradients(build(combination, epsilon=EPSILON, **settings)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("combination", ["gnp+mi", "vt+mi", "pgn+mi", "rap+i", "admix+di+pgd", "gnp+vt+mi+si"])
@pytest.mark.parametrize("form", ["literal", "central", "exact"])
def test_the_count_is_what_the_attack_then_takes(combination: str, form: str) -> None:
    parts = {"gnp": GradientNormPenalty(form=form)} if "gnp" in combination else {}  # type: ignore[arg-type]
    made, tally = build(combination, epsilon=EPSILON, steps=4, parts=parts), Tally()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(784, 5))
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    made(network.requires_grad_(False), images, labels, ["a", "b"], pool=Pool(images, labels), tally=tally)
    assert gradients(made) == tally.gradients


@pytest.fixture
def planned(tmp_path: Path, tiny_checkpoint: Path) -> plans.Plan:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    job = tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi", steps=10), attack("gnp+mi", steps=10)))
    targets = (*job.targets, replace(job.targets[0], name="behind", defense="rp+bits"))
    return resolve(replace(job, targets=targets))


def test_scoring_is_its_share_of_gradients_and_answers(planned: plans.Plan) -> None:
    (source,), (plain, behind) = planned.sources, planned.targets
    # Thirty gradients of 2 s, and of each target an answer to the clean image and to two adversarial ones.
    share = scoring_share(planned, {source.id: 2.0}, {plain.id: 1.0, behind.id: 30.0})
    assert share == pytest.approx(3 * 31 / (3 * 31 + 30 * 2))


def test_everything_is_tried_before_workers_start(planned: plans.Plan, tmp_path: Path) -> None:
    assert planned.job.data.preparation.crop == SIDE
    share = preflight(plans.seal(planned).sealed, Storage(str(tmp_path / "store")))
    assert 0 < share < 1
