import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline.data.sample import Part
from pipeline.errors import RecipeError
from pipeline.ledger import Ledger, Unit
from pipeline.ledger.progress import measure_progress
from pipeline.models import load
from pipeline.models.spec import ModelSpec
from pipeline.plan import outline
from pipeline.plan.data_spec import DataSpec
from pipeline.plan.job import Job
from pipeline.plan.resolve import Plan, require_unchanged_shards, resolve_job
from pipeline.storage import Storage, sha256
from tests.samples import attack, list_pending, make_plan, sample, tiny_job, write_shard


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
        for unit in outline.part_units(planned.outline, source.id, part):
            commit(ledger, unit)


def test_identities_depend_on_everything_that_determines_the_pixels(job: Job) -> None:
    base = make_plan(job)
    assert make_plan(job) == base
    other = replace(job, data=replace(job.data, part_size=5))
    assert make_plan(other).dataset != base.dataset
    for change in ({"seed": 1}, {"fraction": 0.5}, {"limit": 5}, {"name": "other"}):
        spec = replace(job.data, **change)
        assert make_plan(replace(job, data=spec)).dataset != base.dataset, change
    assert make_plan(replace(job, batch_size=2)).dataset == base.dataset
    stronger = make_plan(replace(job, attacks=(attack("mi", steps=3),)))
    assert stronger.dataset == base.dataset
    assert stronger.attacks.keys() != base.attacks.keys()
    state = load_file(str(job.targets[0].checkpoint))
    state["fc.bias"][0] += 1
    save_file(state, str(job.targets[0].checkpoint))
    assert make_plan(job).sources[0].id != base.sources[0].id, "other weights are another source"
    base = make_plan(job)
    cropped = replace(job, targets=(replace(job.targets[0], policy="crop"),))
    assert make_plan(cropped).targets[0].id != base.targets[0].id
    assert make_plan(cropped).sources == base.sources


def test_everything_is_pending_in_an_empty_store(job: Job, ledger: Ledger) -> None:
    items = list_pending(make_plan(job), ledger)
    assert [(item.selection.shard.name, item.offset, item.stride) for item in items] == [("s-0", 0, 1), ("s-1", 0, 1)]


def test_the_last_shards_are_split_into_strided_items(job: Job, ledger: Ledger) -> None:
    planned = make_plan(job).outline
    committed = ledger.list_committed(outline.all_scopes(planned))

    def strides(workers: int, **part_counts: int) -> list[tuple[str, int, int]]:
        counts = {name.replace("_", "-"): count for name, count in part_counts.items()}
        items = outline.pending_items(planned, committed, workers=workers, part_counts=counts)
        return [(item.selection.shard.name, item.offset, item.stride) for item in items]

    whole = [("s-0", 0, 1), ("s-1", 0, 1)]
    eight = [("s-1", offset, 8) for offset in range(8)]
    assert strides(1, s_0=9, s_1=9) == whole, "one worker ends together with itself"
    assert strides(2) == whole, "they may be damaged"
    assert len(strides(2, s_0=9, s_1=9)) == 16
    assert strides(2, s_0=2) == [("s-0", 0, 2), ("s-0", 1, 2), ("s-1", 0, 1)], "not more pieces than parts"
    assert len(strides(100)) == 2 * 50, "a piece for each worker"
    commit_all(ledger, make_plan(job), Part("s-0", 0, 1))
    committed = ledger.list_committed(outline.all_scopes(planned))
    assert strides(2) == [("s-1", 0, 1)], "the only one that is left may be damaged"
    assert strides(2, s_1=9) == eight
    committed = ledger.list_committed([])
    longer = replace(planned, selections=(*[planned.selections[0]] * 9, planned.selections[1]))
    items = outline.pending_items(longer, committed, workers=2, part_counts={"s-0": 9, "s-1": 9})
    assert [item.stride for item in items] == [1] * 8 + [8] * 16


def test_pieces_of_a_shard_are_its_parts(job: Job, ledger: Ledger) -> None:
    planned = make_plan(job)
    commit(ledger, Unit(planned.dataset, Part("s-0", 0, 3)))
    known = ledger.list_committed(outline.all_scopes(planned.outline))
    items = list_pending(planned, ledger, workers=2)[:3]
    parts = [outline.item_parts(item, known) for item in items]
    assert parts == [[Part("s-0", 0, 3)], [Part("s-0", 1, 3)], [Part("s-0", 2, 3)]]


def test_only_items_with_missing_results_are_pending(job: Job, ledger: Ledger) -> None:
    planned = make_plan(job)
    for part in (Part("s-0", 0, 2), Part("s-0", 1, 2), Part("s-1", 0, 1)):
        commit_all(ledger, planned, part)
    assert list_pending(planned, ledger) == []
    counts = measure_progress(planned.to_record(), ledger)
    assert (counts.attacked, counts.to_attack, counts.scored, counts.to_score) == (3, 3, 6, 6)
    wider = make_plan(replace(job, attacks=(*job.attacks, attack("i"))))
    assert len(list_pending(wider, ledger)) == 2
    assert measure_progress(wider.to_record(), ledger).attacked == 3
    assert measure_progress(wider.to_record(), ledger).to_attack == 6


def test_the_same_model_is_loaded_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    real = load.load_model

    def count(spec: ModelSpec, *, classes: int) -> object:
        loaded.append(spec.name)
        return real(spec, classes=classes)

    monkeypatch.setattr(load, "load_model", count)
    make_plan(job)
    assert loaded == ["tiny"]


def test_since_selects_recent_shards_of_the_same_dataset(job: Job) -> None:
    older, newer = (Path(selection.shard.url.removeprefix("file://")) for selection in make_plan(job).selections)
    os.utime(older, (1000, 1000))
    os.utime(newer, (2000, 2000))
    storage = Storage(str(newer.parent.parent / "store"), create=True)
    for since, names in ((0, [older.stem, newer.stem]), (1500, [newer.stem]), (2000.0, [newer.stem]), (3000, [])):
        planned = resolve_job(job, storage, since=since)
        assert [selection.shard.name for selection in planned.selections] == names
        assert planned.dataset == make_plan(job).dataset
        assert outline.pending_items(
            planned.outline, Ledger(storage).list_committed(outline.all_scopes(planned.outline))
        ) == [outline.Item(selection, source.id) for source in planned.sources for selection in planned.selections]


@pytest.mark.parametrize(("limit", "counts"), [(3, [3]), (10, [10]), (12, [10, 2]), (99, [10, 6])])
def test_a_limit_selects_the_first_images(job: Job, limit: int, counts: list[int]) -> None:
    limited = make_plan(replace(job, data=replace(job.data, limit=limit)))
    assert [selection.images for selection in limited.selections] == counts
    assert limited.dataset != make_plan(job).dataset
    backwards = replace(
        job.data, limit=limit, shards=tuple(reversed([selection.shard.url for selection in make_plan(job).selections]))
    )
    assert make_plan(replace(job, data=backwards)).dataset != limited.dataset, "the first images are others"


def test_a_changed_shard_is_refused_and_a_copy_accepted(job: Job, ledger: Ledger) -> None:
    planned = make_plan(job)
    require_unchanged_shards(planned, ledger)
    shard = planned.selections[0].shard
    path = Path(shard.url)
    facts = {**asdict(shard), "sha256": sha256(path.read_bytes())}
    ledger.commit(Unit(planned.dataset, Part("s-0", 0, 3)), b"", "tar", {"shard": facts})
    require_unchanged_shards(planned, ledger)
    shutil.copy(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").rename(path)
    assert make_plan(job).selections[0].shard.version != shard.version
    require_unchanged_shards(make_plan(job), ledger)
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecipeError, match=r"s-0\.tar is not the 's-0' that this store's results come from"):
        require_unchanged_shards(make_plan(job), ledger)


def test_a_fraction_includes_about_its_share_of_keys_by_seed() -> None:
    spec = DataSpec("d", ("x.tar",), fraction=0.25, seed=1)
    chosen = [spec.includes("s", str(key)) for key in range(4000)]
    assert chosen == [spec.includes("s", str(key)) for key in range(4000)]
    assert 900 < sum(chosen) < 1100
    assert chosen != [replace(spec, seed=2).includes("s", str(key)) for key in range(4000)]
    assert all(DataSpec("d", ("x.tar",)).includes("s", str(key)) for key in range(100))
