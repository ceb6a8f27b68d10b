import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline.data.sample import Part
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger, Unit
from pipeline.ledger.progress import progress
from pipeline.models import load
from pipeline.models.load import ModelSpec
from pipeline.plan import outline
from pipeline.plan import resolve as plan
from pipeline.plan.resolve import DataSpec, Job, Plan
from pipeline.storage import Storage, sha256
from tests.samples import attack, pending, resolve, sample, tiny_job, write_shard


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path) -> Job:
    own = Path(shutil.copy(tiny_checkpoint, tmp_path / "own.safetensors"))
    for number, count in enumerate((10, 6)):
        write_shard(tmp_path / "in" / f"s-{number}.tar", [sample(100 * number + index) for index in range(count)])
    return tiny_job(tmp_path / "in", own)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path / "store"), create=True))


def commit(ledger: Ledger, unit: Unit) -> None:
    ledger.commit(unit, b"", "tar", {})


def commit_all(ledger: Ledger, planned: Plan, part: Part) -> None:
    for source in planned.sources:
        for unit in outline.units(planned.outline, source.id, part):
            commit(ledger, unit)


def test_identities_follow_what_determines_the_pixels(job: Job) -> None:
    base = resolve(job)
    assert resolve(job) == base
    other = replace(job, data=replace(job.data, part_size=5))
    assert resolve(other).dataset != base.dataset
    for change in ({"seed": 1}, {"fraction": 0.5}, {"limit": 5}, {"name": "other"}):
        spec = replace(job.data, **change)
        assert resolve(replace(job, data=spec)).dataset != base.dataset, change
    assert resolve(replace(job, batch_size=2)).dataset == base.dataset
    stronger = resolve(replace(job, attacks=(attack("mi", steps=3),)))
    assert stronger.dataset == base.dataset
    assert stronger.attacks.keys() != base.attacks.keys()
    state = load_file(str(job.targets[0].checkpoint))
    state["fc.bias"][0] += 1
    save_file(state, str(job.targets[0].checkpoint))
    assert resolve(job).sources[0].id != base.sources[0].id, "other weights are another source"
    base = resolve(job)
    cropped = replace(job, targets=(replace(job.targets[0], policy="crop"),))
    assert resolve(cropped).targets[0].id != base.targets[0].id
    assert resolve(cropped).sources == base.sources


def test_everything_is_pending_in_an_empty_store(job: Job, ledger: Ledger) -> None:
    items = pending(resolve(job), ledger)
    assert [(item.take.shard.name, item.offset, item.stride) for item in items] == [("s-0", 0, 1), ("s-1", 0, 1)]


def test_fewer_shards_than_workers_are_split_into_strided_items(job: Job, ledger: Ledger) -> None:
    planned = resolve(job)
    items = pending(planned, ledger, workers=5)
    assert [(item.offset, item.stride) for item in items] == [(0, 3), (1, 3), (2, 3)] * 2
    commit(ledger, Unit(planned.dataset, Part("s-0", 0, 3)))
    known = ledger.committed(outline.all_scopes(planned.outline))
    parts = [outline.item_parts(item, known) for item in items[:3]]
    assert parts == [[Part("s-0", 0, 3)], [Part("s-0", 1, 3)], [Part("s-0", 2, 3)]]


def test_what_is_committed_is_not_pending_and_what_is_not_is(job: Job, ledger: Ledger) -> None:
    planned = resolve(job)
    for part in (Part("s-0", 0, 2), Part("s-0", 1, 2), Part("s-1", 0, 1)):
        commit_all(ledger, planned, part)
    assert pending(planned, ledger) == []
    counts = progress(planned.describe(), ledger)
    assert (counts.attacked, counts.to_attack, counts.scored, counts.to_score) == (3, 3, 6, 6)
    wider = resolve(replace(job, attacks=(*job.attacks, attack("i"))))
    assert len(pending(wider, ledger)) == 2
    assert progress(wider.describe(), ledger).attacked == 3
    assert progress(wider.describe(), ledger).to_attack == 6


def test_the_same_model_is_loaded_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    real = load.load

    def count(spec: ModelSpec, *, classes: int) -> object:
        loaded.append(spec.name)
        return real(spec, classes=classes)

    monkeypatch.setattr(load, "load", count)
    resolve(job)
    assert loaded == ["tiny"]


def test_only_shards_written_since_are_taken_and_the_data_are_the_same(job: Job) -> None:
    older, newer = (Path(take.shard.url.removeprefix("file://")) for take in resolve(job).takes)
    os.utime(older, (1000, 1000))
    os.utime(newer, (2000, 2000))
    storage = Storage(str(newer.parent.parent / "store"), create=True)
    for since, names in ((0, [older.stem, newer.stem]), (1500, [newer.stem]), (2000.0, [newer.stem]), (3000, [])):
        planned = plan.resolve(job, storage, since=since)
        assert [take.shard.name for take in planned.takes] == names
        assert planned.dataset == resolve(job).dataset
        assert outline.pending(planned.outline, Ledger(storage).committed(outline.all_scopes(planned.outline))) == [
            outline.Item(take, source.id) for source in planned.sources for take in planned.takes
        ]


@pytest.mark.parametrize(("limit", "takes"), [(3, [3]), (10, [10]), (12, [10, 2]), (99, [10, 6])])
def test_a_limit_takes_the_first_images(job: Job, limit: int, takes: list[int]) -> None:
    limited = resolve(replace(job, data=replace(job.data, limit=limit)))
    assert [take.images for take in limited.takes] == takes
    assert limited.dataset != resolve(job).dataset
    backwards = replace(job.data, limit=limit, shards=tuple(reversed([take.shard.url for take in resolve(job).takes])))
    assert resolve(replace(job, data=backwards)).dataset != limited.dataset, "the first images are others"


def test_a_shard_of_other_content_is_refused_and_a_copy_is_not(job: Job, ledger: Ledger) -> None:
    planned = resolve(job)
    plan.require_unchanged(planned, ledger)
    shard = planned.takes[0].shard
    path = Path(shard.url)
    facts = {**asdict(shard), "sha256": sha256(path.read_bytes())}
    ledger.commit(Unit(planned.dataset, Part("s-0", 0, 3)), b"", "tar", {"shard": facts})
    plan.require_unchanged(planned, ledger)
    shutil.copy(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").rename(path)
    assert resolve(job).takes[0].shard.version != shard.version
    plan.require_unchanged(resolve(job), ledger)
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecipeError, match=r"s-0\.tar is not the 's-0' that this store's results come from"):
        plan.require_unchanged(resolve(job), ledger)


def test_a_fraction_is_seeded_by_key_and_about_right() -> None:
    spec = DataSpec("d", ("x.tar",), fraction=0.25, seed=1)
    chosen = [spec.chooses("s", str(key)) for key in range(4000)]
    assert chosen == [spec.chooses("s", str(key)) for key in range(4000)]
    assert 900 < sum(chosen) < 1100
    assert chosen != [replace(spec, seed=2).chooses("s", str(key)) for key in range(4000)]
    assert all(DataSpec("d", ("x.tar",)).chooses("s", str(key)) for key in range(100))
