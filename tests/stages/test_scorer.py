"""Scorer stage: predictions with and without defenses, and success counts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.analysis.report import summarise
from pipeline.errors import WeightsError
from pipeline.ledger.progress import StageTotals
from pipeline.maintenance.verify import audit
from pipeline.models.classifier import Classifier
from pipeline.models.defenses import RandomisedSmoothing, RandomResizePad
from pipeline.plan.job import Job
from pipeline.results import schema
from pipeline.stages import Generator, Scorer
from tests.samples import attack, list_pending, make_plan
from tests.stages.runs import CPU, digests, new_ledger, resolve_weights, run_stages


def test_weights_other_than_the_resolved_ones_are_refused(job: Job, tmp_path: Path) -> None:
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    (target,) = plan.targets
    changed = replace(plan, targets=(replace(target, digest="0" * 64),))
    with pytest.raises(WeightsError, match="not to 000000000000"):
        Scorer(changed, ledger, CPU)


def test_defended_targets_are_scored_reproducibly(job: Job, tmp_path: Path) -> None:
    plain = job.targets[0]
    defended = [replace(plain, name=name, defense=name) for name in ("rp", "bits+jpeg", "smoothing")]
    defended[0] = replace(defended[0], rp=RandomResizePad(draws=2))
    defended[2] = replace(defended[2], smoothing=RandomisedSmoothing(sigma=1.0, draws=11))
    plan = make_plan(replace(job, targets=(plain, *defended)))
    first, second = new_ledger(tmp_path / "first"), new_ledger(tmp_path / "second")
    run_stages(plan, first)
    run_stages(plan, second, workers=6)
    assert digests(first) == digests(second)
    assert audit(first).problems == []
    rows = {
        marker.unit.target.split("-")[0]: schema.read_parquet(first.read_data(marker), name="x").to_pylist()
        for marker in first.read_markers(unit for unit in first.list_units("clean") if unit.part.shard == "s-1")
    }
    assert {name: {row["defense"] for row in target_rows} for name, target_rows in rows.items()} == {
        "tiny": {""},
        "rp": {"rp"},
        "bits": {"bits+jpeg"},
        "smoothing": {"smoothing"},
    }
    assert any(row["abstained"] for row in rows["smoothing"]), "eleven votes rarely decide"
    assert not any(row["abstained"] for name in ("tiny", "rp", "bits") for row in rows[name])
    marker = next(first.read_markers(unit for unit in first.list_units("clean") if unit.target.startswith("bits")))
    assert [defense["kind"] for defense in marker.fact("target")["defenses"]] == ["BitDepth", "Jpeg"]


def test_success_is_counted_against_clean_predictions_of_an_earlier_run(job: Job, tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "store")
    run_stages(make_plan(job), ledger)
    plan = make_plan(replace(job, attacks=(*job.attacks, attack("i"))))
    generator, scorer = Generator(plan, ledger, CPU), Scorer(plan, ledger, CPU)
    items = list_pending(plan, ledger)
    for item in items:
        generator.run(item)
    scored = sum((scorer.run(item) for item in items), StageTotals())
    (line,) = (line for line in summarise(ledger).success if line.attack == "i")
    cell = (line.source, "i", line.target)
    assert (scored.fooled, scored.eligible) == ({cell: line.rates["target"].count}, {cell: line.rates["target"].n})


def test_damaged_clean_results_of_an_earlier_run_only_prevent_the_count(job: Job, tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "store")
    run_stages(make_plan(job), ledger)
    for marker in ledger.read_markers(ledger.list_units("clean")):
        ledger.storage.put(marker.object, b"")
    plan = make_plan(replace(job, attacks=(*job.attacks, attack("i"))))
    assert run_stages(plan, ledger) == (4, 4)


@pytest.mark.parametrize("defense", ["", "bits", "smoothing"])
def test_logits_that_are_not_finite_fail_the_target_alone(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defense: str
) -> None:
    state = load_file(str(job.targets[0].checkpoint))
    save_file({**state, "fc.bias": state["fc.bias"] + 1}, tmp_path / "bad.safetensors")
    bad = replace(job.targets[0], name="bad", checkpoint=str(tmp_path / "bad.safetensors"), defense=defense)
    plan, ledger = make_plan(replace(job, targets=(bad, *job.targets))), new_ledger(tmp_path / "store")
    resolve_weights(plan, ledger)
    item = list_pending(plan, ledger)[0]
    Generator(plan, ledger, CPU).run(item)
    scorer, real = Scorer(plan, ledger, CPU), Classifier.classify
    overflowing = scorer.targets[0].network

    def classify(self: Classifier, inputs: Tensor) -> Tensor:
        return real(self, inputs) * (torch.nan if self is overflowing else 1)

    monkeypatch.setattr(Classifier, "classify", classify)
    with pytest.raises(
        FloatingPointError, match=r"bad: its logits are not finite on 4 of 4 images; see its checkpoint"
    ):
        scorer.run(item)
    scored = [*ledger.list_units("clean"), *ledger.list_units("transfer")]
    assert {unit.target.split("-")[0] for unit in scored} == {"tiny"}
    assert len(scored) == len(plan.attacks) * 3 + 3
