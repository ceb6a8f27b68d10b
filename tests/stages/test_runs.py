"""Both stages together: complete, repeated, interrupted and extended runs."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest
from safetensors.torch import load_file, save_file

from pipeline.analysis.report import summarise
from pipeline.attack.ensemble import Fuse
from pipeline.data import shards
from pipeline.ledger import Ledger
from pipeline.ledger.progress import StageTotals
from pipeline.maintenance.verify import audit
from pipeline.models.spec import EnsembleSpec
from pipeline.plan.job import Job
from pipeline.stages import Generator, Scorer
from tests.samples import attack, list_pending, make_plan
from tests.stages.runs import CPU, digests, new_ledger, resolve_weights, run_stages


def test_a_run_commits_every_unit_once(job: Job, tmp_path: Path) -> None:
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    assert run_stages(plan, ledger) == (8, 12)
    assert list_pending(plan, ledger) == []
    assert run_stages(plan, ledger) == (0, 0)


def test_another_store_and_number_of_workers_give_the_same_bytes(job: Job, tmp_path: Path) -> None:
    plan = make_plan(job)
    first, second = new_ledger(tmp_path / "first"), new_ledger(tmp_path / "second")
    run_stages(plan, first)
    run_stages(plan, second, workers=6)
    assert digests(first) == digests(second)


def test_an_interrupted_run_resumes_to_the_same_bytes(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(job)
    whole, interrupted = new_ledger(tmp_path / "whole"), new_ledger(tmp_path / "interrupted")
    run_stages(plan, whole)
    real, left = Ledger.commit, 0

    def commit_some(ledger: Ledger, *arguments: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return real(ledger, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "commit", commit_some)
    for _ in range(40):
        left = 3
        try:
            run_stages(plan, interrupted)
        except KeyboardInterrupt:
            continue
        break
    monkeypatch.undo()
    assert list_pending(plan, interrupted) == []
    assert digests(interrupted) == digests(whole)
    assert len(list(interrupted.storage.list("shards"))) == len(list(whole.storage.list("shards")))


def test_a_new_attack_or_target_computes_only_its_own_units(job: Job, tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "store")
    run_stages(make_plan(job), ledger)
    wider = replace(job, attacks=(*job.attacks, attack("i")))
    assert run_stages(make_plan(wider), ledger) == (4, 4)
    second = replace(job.targets[0], name="tiny-again", policy="direct", mean=(0.5, 0.5, 0.5))
    assert run_stages(make_plan(replace(wider, targets=(*job.targets, second))), ledger) == (0, 4 + 12)


def test_an_automatic_batch_size_is_used_and_recorded(job: Job, tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "store")
    automatic = replace(job, batch_size="auto", attacks=(*job.attacks, attack("i", target_class="least-likely")))
    run_stages(make_plan(automatic), ledger)
    fixed = new_ledger(tmp_path / "fixed")
    run_stages(make_plan(replace(automatic, batch_size=4)), fixed)
    units_by_kind = {kind: sorted(ledger.list_units(kind)) for kind in ("original", "adversarial", "clean", "transfer")}
    assert units_by_kind == {kind: sorted(fixed.list_units(kind)) for kind in units_by_kind}
    for kind, units in units_by_kind.items():
        sizes = {ledger.read_marker(unit).facts["batch_size"] for unit in units}
        assert sizes <= ({None} if kind == "original" else {1, 2, 4})


def test_an_ensemble_is_attacked_like_a_single_source(job: Job, tmp_path: Path, tiny_checkpoint: Path) -> None:
    state = {name: value.flip(0) for name, value in load_file(tiny_checkpoint).items()}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "other.safetensors")
    first = job.targets[0]
    second = replace(first, name="other", checkpoint=str(tmp_path / "other.safetensors"))
    ensembles = tuple(EnsembleSpec((first, second), fuse, name=fuse) for fuse in get_args(Fuse))
    plan, ledger = make_plan(replace(job, sources=(first, *ensembles))), new_ledger(tmp_path / "store")
    run_stages(plan, ledger)
    assert list_pending(plan, ledger) == []
    markers = {
        unit.source.split("-")[0]: ledger.read_marker(unit)
        for unit in ledger.list_units("adversarial")
        if unit.part.index == 0 and not unit.attack.startswith("noise")  # noise is the same from every source
    }
    assert markers.keys() == {"tiny", "logits", "probabilities", "losses"}
    assert len({source.id for source in plan.sources}) == 4
    digest = {name: marker.fact("pixels_sha256") for name, marker in markers.items()}
    assert digest["logits"] != digest["tiny"]
    assert audit(ledger).problems == []


def test_a_stored_image_lies_inside_its_l2_ball(job: Job, tmp_path: Path) -> None:
    attacks = (attack("noise", norm="l2", epsilon=Fraction(1)), attack("mi", norm="l2", epsilon=Fraction(1)))
    plan, ledger = make_plan(replace(job, attacks=attacks)), new_ledger(tmp_path / "store")
    run_stages(plan, ledger)
    assert audit(ledger).problems == []
    record = next(
        shards.read_records(ledger.read_data(next(ledger.read_markers(ledger.list_units("adversarial")))), name="x")
    )
    assert 0.9 < json.loads(record["json"])["l2"] <= 1


def test_totals_equal_the_report(job: Job, tmp_path: Path) -> None:
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    resolve_weights(plan, ledger)
    generator, scorer = Generator(plan, ledger, CPU), Scorer(plan, ledger, CPU)
    items = list_pending(plan, ledger)
    attacked = sum((generator.run(item) for item in items), StageTotals())
    scored = sum((scorer.run(item) for item in items), StageTotals())
    assert (attacked.images, scored.images) == (26, 39)
    assert set(attacked.seconds) == {"get", "decode", "gradient", "answer", "encode", "put"}
    assert set(scored.seconds) == {"get", "decode", "answer", "encode", "put"}
    assert min(attacked.seconds.values()) > 0
    reported = {(line.source, line.attack, line.target): line.rates["target"] for line in summarise(ledger).success}
    assert {cell: (scored.fooled[cell], n) for cell, n in scored.eligible.items()} == {
        cell: (rate.count, rate.n) for cell, rate in reported.items()
    }
