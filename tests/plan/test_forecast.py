import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.app import parse_since
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger
from pipeline.plan.forecast import Forecast, WorkForecast, forecast_plan
from pipeline.plan.job import Job
from pipeline.storage import Storage
from tests.jobs.test_cli import Run, gnp  # noqa: F401  # a fixture
from tests.samples import attack, list_pending, make_plan, sample, tiny_job, write_recipe, write_shard
from tests.stages.runs import run_stages


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path) -> Job:
    """Two shards of 8 images, in parts of 4; two steps make two gradients, with a penalty four."""
    for number in range(2):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(8)])
    return tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"), attack("gnp+mi")))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path / "store"), create=True))


def by_name(forecast: Forecast) -> dict[str, WorkForecast]:
    return {f"{work.stage} {work.name}": work for work in forecast.works}


def test_in_an_empty_store_everything_is_left_and_nothing_is_measured(job: Job, ledger: Ledger) -> None:
    forecast = forecast_plan(make_plan(job), ledger)
    assert (forecast.shards, forecast.shards_known, forecast.images) == (2, 0, 16), "counted in the first shard"
    works = by_name(forecast)
    assert [(name, work.left, work.gradients, work.objects) for name, work in works.items()] == [
        ("generator originals", 16, 0, 4),
        ("generator tiny → mi", 16, 2, 4),
        ("generator tiny → gnp-mi", 16, 4, 4),
        ("scorer tiny", 48, 0, 12),
    ]
    assert (forecast.hours("generator"), forecast.bytes_left) == (0, None)
    assert forecast.unmeasured == ["originals", "tiny → mi", "tiny → gnp-mi", "tiny"]
    assert {work.done for work in works.values()} == {0}


def test_committed_work_is_not_left_and_gives_the_rates_of_the_rest(job: Job, ledger: Ledger) -> None:
    first = replace(
        job, attacks=job.attacks[:1], data=replace(job.data, shards=(job.data.shards[0].replace("*", "s-0"),))
    )
    run_stages(make_plan(first), ledger)
    before = {stored.key for stored in ledger.storage.list()}
    forecast = forecast_plan(make_plan(job), ledger)
    works = by_name(forecast)
    assert (forecast.shards_known, forecast.images) == (1, 16)
    assert [(work.done, work.left, work.objects) for work in works.values()] == [
        (8, 8, 2),
        (8, 8, 2),
        (0, 16, 4),
        (16, 32, 8),
    ]
    mi, penalised = works["generator tiny → mi"], works["generator tiny → gnp-mi"]
    assert mi.seconds is not None
    assert penalised.seconds == pytest.approx(2 * mi.seconds), "as long a gradient"
    assert penalised.size_bytes == mi.size_bytes
    assert mi.hours == pytest.approx(8 * mi.seconds / 3600)
    assert forecast.hours("generator") == pytest.approx(
        sum(work.hours or 0 for name, work in works.items() if name.startswith("generator"))
    )
    assert {stored.key for stored in ledger.storage.list()} == before, "it reads only"


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_the_last_part_counts_with_its_own_size(
    tmp_path: Path, tiny_checkpoint: Path, ledger: Ledger, fraction: float
) -> None:
    """9 images in parts of 4: the last has one; of a fraction, the number that it includes."""
    for number in range(3):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(9)])
    job = tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"),))
    job = replace(job, data=replace(job.data, fraction=fraction))
    before = forecast_plan(make_plan(job), ledger)
    assert (before.images, before.works[0].objects) == (27 if fraction == 1 else 12, 9)
    run_stages(
        make_plan(replace(job, data=replace(job.data, shards=(job.data.shards[0].replace("*", "s-0"),)))), ledger
    )
    after = forecast_plan(make_plan(job), ledger)
    assert (after.shards_known, after.images, after.works[0].objects) == (1, before.images, 6)


def test_committed_shards_are_counted_exactly(tmp_path: Path, tiny_checkpoint: Path, ledger: Ledger) -> None:
    """As many images a byte as the others would make 1 of the padded shard's 2, and more of the others' 4."""
    write_shard(tmp_path / "in" / "s-0.tar", [{**sample(index), "txt": bytes(50_000)} for index in range(2)])
    write_shard(tmp_path / "in" / "s-1.tar", [sample(10 + index) for index in range(4)])
    job = tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"),))
    run_stages(make_plan(job), ledger)
    only = replace(job, data=replace(job.data, shards=(job.data.shards[0].replace("*", "s-0"),)))
    assert (forecast_plan(make_plan(job), ledger).images, forecast_plan(make_plan(only), ledger).images) == (6, 2)


def test_with_everything_done_nothing_is_left(job: Job, ledger: Ledger) -> None:
    planned = make_plan(job)
    run_stages(planned, ledger)
    assert not list_pending(planned, ledger)
    forecast = forecast_plan(planned, ledger)
    assert [(work.left, work.objects, work.hours) for work in forecast.works] == [(0, 0, 0.0)] * 4
    assert [work.done for work in forecast.works] == [16, 16, 16, 48]


def test_a_trial_in_the_same_store_gives_the_rates(job: Job, ledger: Ledger) -> None:
    trial = make_plan(replace(job, data=replace(job.data, limit=4)))
    ledger.record_plan(trial.to_record())
    run_stages(trial, ledger)
    forecast = forecast_plan(make_plan(job), ledger)
    assert {work.done for work in forecast.works} == {0}, "a trial's data are others"
    assert all(work.seconds and work.size_bytes and work.device for work in forecast.works)


def test_a_trial_in_another_store_gives_the_rates(job: Job, ledger: Ledger, tmp_path: Path) -> None:
    trial = make_plan(replace(job, attacks=job.attacks[:1], data=replace(job.data, limit=4)))
    ledger.record_plan(trial.to_record())
    run_stages(trial, ledger)
    other = Ledger(Storage(str(tmp_path / "other"), create=True))
    assert forecast_plan(make_plan(job), other, rates=ledger).unmeasured == []
    wider = replace(job, targets=(*job.targets, replace(job.targets[0], name="new", policy="direct")))
    forecast = forecast_plan(make_plan(wider), other, rates=ledger)
    assert forecast.unmeasured == ["new"]
    assert forecast.hours("scorer") == forecast_plan(make_plan(job), other, rates=ledger).hours("scorer")


def test_the_command_prints_the_forecast_and_creates_no_store(
    gnp: Run,  # noqa: F811
    tmp_path: Path,
    tiny_checkpoint: Path,
    job: Job,
    ledger: Ledger,
) -> None:
    recipe = write_recipe(tmp_path, tiny_checkpoint, attacks='attacks = ["mi"]', data="part_size = 4")
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "nothing")
    assert (code, (tmp_path / "nothing").exists()) == (0, False)
    assert "left to write: 16 objects and as many markers\n" in out
    assert out.startswith(f"{tmp_path / 'nothing'}: no run has written here yet\n")
    assert out.endswith("gnp generate --limit 100, into another store, and give it as --rates-from\n")
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "nothing", "--limit", 4)
    assert "4 images in" in out
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "nothing", "--since", "2100-01-01")
    assert code == 2
    for shard in (tmp_path / "in").iterdir():
        os.utime(shard, (1e9, 1e9))
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "nothing", "--since", "2020-01-01")
    assert out.endswith("nothing to do: none of the recipe's shards was written in that time\n")
    run_stages(make_plan(job), ledger)
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "store", "--price", 2, "--json")
    values = json.loads(out)
    assert (code, values["images"], set(values["hours"])) == (0, 16, {"generator", "scorer"})
    recipe.write_text(recipe.read_text().replace('["mi"]', '["mi", "i"]'))
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "store", "--price", 2, "--generators", 2)
    assert code == 0
    assert re.search(r"worker time: \S+ s of generators and \S+ s of scorers \(predictions only\)\n", out)
    assert " with 2 generators and 1 scorer; the " in out
    assert "0.00 at 2 per hour of a worker, if workers are paid only while they are busy; 0.00 if all" in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("36h", 1e9 - 36 * 3600),
        ("7d", 1e9 - 7 * 86400),
        ("2001-09-08T01:46:40", 1e9 - 86400),
        ("2001-09-08", 999907200),
    ],
)
def test_since_accepts_a_duration_or_a_time(text: str, expected: float) -> None:
    assert parse_since(text, 1e9) == expected


def test_an_invalid_since_is_refused() -> None:
    with pytest.raises(RecipeError, match="--since yesterday: expected hours"):
        parse_since("yesterday", 1e9)
