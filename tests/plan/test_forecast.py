import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.app import since_when
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger
from pipeline.plan import resolve as plan
from pipeline.plan.forecast import Estimate, Work, estimate
from pipeline.storage import Storage
from tests.jobs.test_cli import Run, gnp  # noqa: F401  # a fixture
from tests.samples import attack, pending, resolve, sample, tiny_job, write_recipe, write_shard
from tests.stages.test_stages import run_all


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path) -> plan.Job:
    """Two shards of 8 images, in parts of 4; two steps make two gradients, with a penalty four."""
    for number in range(2):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(8)])
    return tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"), attack("gnp+mi")))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path / "store"), create=True))


def by_name(found: Estimate) -> dict[str, Work]:
    return {f"{work.stage} {work.name}": work for work in found.works}


def test_an_empty_store_has_everything_to_come_and_no_rates(job: plan.Job, ledger: Ledger) -> None:
    found = estimate(resolve(job), ledger)
    assert (found.shards, found.shards_known, found.images) == (2, 0, 16), "counted in the first shard"
    works = by_name(found)
    assert [(name, work.left, work.gradients, work.objects) for name, work in works.items()] == [
        ("generator originals", 16, 0, 4),
        ("generator tiny → mi", 16, 2, 4),
        ("generator tiny → gnp-mi", 16, 4, 4),
        ("scorer tiny", 48, 0, 12),
    ]
    assert (found.hours("generator"), found.bytes_left) == (0, None)
    assert found.unmeasured == ["originals", "tiny → mi", "tiny → gnp-mi", "tiny"]
    assert {work.done for work in works.values()} == {0}


def test_what_stands_is_not_to_come_and_says_what_the_rest_will_take(job: plan.Job, ledger: Ledger) -> None:
    first = replace(
        job, attacks=job.attacks[:1], data=replace(job.data, shards=(job.data.shards[0].replace("*", "s-0"),))
    )
    run_all(resolve(first), ledger)
    before = {stored.key for stored in ledger.storage.list()}
    found = estimate(resolve(job), ledger)
    works = by_name(found)
    assert (found.shards_known, found.images) == (1, 16)
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
    assert found.hours("generator") == pytest.approx(
        sum(work.hours or 0 for name, work in works.items() if name.startswith("generator"))
    )
    assert {stored.key for stored in ledger.storage.list()} == before, "it reads only"


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_images_are_counted_to_the_last_part(
    tmp_path: Path, tiny_checkpoint: Path, ledger: Ledger, fraction: float
) -> None:
    """9 images in parts of 4: the last has one; of a fraction, as many as that chooses."""
    for number in range(3):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(10 * number + index) for index in range(9)])
    job = tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"),))
    job = replace(job, data=replace(job.data, fraction=fraction))
    before = estimate(resolve(job), ledger)
    assert (before.images, before.works[0].objects) == (27 if fraction == 1 else 12, 9)
    run_all(resolve(replace(job, data=replace(job.data, shards=(job.data.shards[0].replace("*", "s-0"),)))), ledger)
    after = estimate(resolve(job), ledger)
    assert (after.shards_known, after.images, after.works[0].objects) == (1, before.images, 6)


def test_shards_of_unlike_images_are_counted_one_by_one(tmp_path: Path, tiny_checkpoint: Path, ledger: Ledger) -> None:
    """As many images a byte as the others would make 1 of the padded shard's 2, and more of the others' 4."""
    write_shard(tmp_path / "in" / "s-0.tar", [{**sample(index), "txt": bytes(50_000)} for index in range(2)])
    write_shard(tmp_path / "in" / "s-1.tar", [sample(10 + index) for index in range(4)])
    job = tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("mi"),))
    run_all(resolve(job), ledger)
    only = replace(job, data=replace(job.data, shards=(job.data.shards[0].replace("*", "s-0"),)))
    assert (estimate(resolve(job), ledger).images, estimate(resolve(only), ledger).images) == (6, 2)


def test_everything_done_is_nothing_to_come(job: plan.Job, ledger: Ledger) -> None:
    planned = resolve(job)
    run_all(planned, ledger)
    assert not pending(planned, ledger)
    found = estimate(planned, ledger)
    assert [(work.left, work.objects, work.hours) for work in found.works] == [(0, 0, 0.0)] * 4
    assert [work.done for work in found.works] == [16, 16, 16, 48]


def test_a_trial_says_what_the_whole_will_take(job: plan.Job, ledger: Ledger) -> None:
    trial = resolve(replace(job, data=replace(job.data, limit=4)))
    ledger.record_plan(trial.describe())
    run_all(trial, ledger)
    found = estimate(resolve(job), ledger)
    assert {work.done for work in found.works} == {0}, "a trial's data are others"
    assert all(work.seconds and work.size_bytes and work.device for work in found.works)


def test_a_trial_in_another_store_says_it_too(job: plan.Job, ledger: Ledger, tmp_path: Path) -> None:
    trial = resolve(replace(job, attacks=job.attacks[:1], data=replace(job.data, limit=4)))
    ledger.record_plan(trial.describe())
    run_all(trial, ledger)
    other = Ledger(Storage(str(tmp_path / "other"), create=True))
    assert estimate(resolve(job), other, rates=ledger).unmeasured == []
    wider = replace(job, targets=(*job.targets, replace(job.targets[0], name="new", policy="direct")))
    found = estimate(resolve(wider), other, rates=ledger)
    assert found.unmeasured == ["new"]
    assert found.hours("scorer") == estimate(resolve(job), other, rates=ledger).hours("scorer")


def test_the_command_says_it_and_makes_no_store(
    gnp: Run,  # noqa: F811
    tmp_path: Path,
    tiny_checkpoint: Path,
    job: plan.Job,
    ledger: Ledger,
) -> None:
    recipe = write_recipe(tmp_path, tiny_checkpoint, attacks='attacks = ["mi"]', data="part_size = 4")
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "nothing")
    assert (code, (tmp_path / "nothing").exists()) == (0, False)
    assert "to come: 16 objects and as many markers\n" in out
    assert out.startswith(f"{tmp_path / 'nothing'}: no run has written here yet\n")
    assert out.endswith("gnp generate --limit 100 into another store, which --rates-from then names\n")
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "nothing", "--limit", 4)
    assert "4 images in" in out
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "nothing", "--since", "2100-01-01")
    assert code == 2
    for shard in (tmp_path / "in").iterdir():
        os.utime(shard, (1e9, 1e9))
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "nothing", "--since", "2020-01-01")
    assert out.endswith("nothing to do: none of the recipe's shards was written in that time\n")
    run_all(resolve(job), ledger)
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "store", "--price", 2, "--json")
    said = json.loads(out)
    assert (code, said["images"], set(said["hours"])) == (0, 16, {"generator", "scorer"})
    recipe.write_text(recipe.read_text().replace('["mi"]', '["mi", "i"]'))
    code, out, _ = gnp("plan", recipe, "--store", tmp_path / "store", "--price", 2, "--generators", 2)
    assert code == 0
    assert re.search(r"of one worker: \S+ s of a generator and \S+ s of a scorer's answers\n", out)
    assert " with 2 generators and 1 scorer, of which the " in out
    assert "0.00 at 2 an hour of a worker, for what they are busy; 0.00 if all" in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("36h", 1e9 - 36 * 3600),
        ("7d", 1e9 - 7 * 86400),
        ("2001-09-08T01:46:40", 1e9 - 86400),
        ("2001-09-08", 999907200),
    ],
)
def test_a_time_since_is_a_span_or_a_moment(text: str, expected: float) -> None:
    assert since_when(text, 1e9) == expected


def test_another_time_is_refused() -> None:
    with pytest.raises(RecipeError, match="--since yesterday: expected hours"):
        since_when("yesterday", 1e9)
