"""Original parts: decoding, quarantine, damaged and changed shards."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.data import codec, parts, shards
from pipeline.data.sample import Part
from pipeline.errors import ShardError
from pipeline.ledger import Unit
from pipeline.plan import outline
from pipeline.plan.job import Job
from pipeline.results import schema
from pipeline.stages import Generator
from pipeline.stages.originals import OriginalParts
from pipeline.storage import sha256
from tests.samples import jpeg, list_pending, make_plan, sample, tiny_job, write_shard
from tests.stages.runs import CPU, new_ledger, run_stages


def test_bad_samples_are_quarantined_and_counts_add_up(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples = [
        sample(0),
        {"__key__": "cut", "jpg": jpeg(1)[:300], "cls": b"1"},
        {"__key__": "unlabelled", "jpg": jpeg(2)},
        {"__key__": "small", "jpg": jpeg(3, side=8), "cls": b"1"},
        sample(4),
    ]
    write_shard(tmp_path / "in" / "s.tar", samples)
    job = tiny_job(tmp_path / "in", tiny_checkpoint, part_size=8)
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    run_stages(plan, ledger)
    (marker,) = ledger.read_markers(ledger.list_units("original"))
    facts = marker.facts
    assert (facts["n_in"], facts["n_ok"], facts["n_quarantined"]) == (5, 3, 2)
    assert {row["key"] for row in facts["quarantined"]} == {"cut", "unlabelled"}
    (result,) = ledger.read_markers(ledger.list_units("transfer"))
    assert schema.read_parquet(ledger.read_data(result), name="x").column("key").to_pylist() == [
        "image00000",
        "small",
        "image00004",
    ]


def test_a_part_of_only_bad_samples_is_complete_and_empty(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [{"__key__": "bad", "jpg": b"x", "cls": b"1"}])
    plan, ledger = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint)), new_ledger(tmp_path / "store")
    assert run_stages(plan, ledger) == (1, 2)
    assert list_pending(plan, ledger) == []
    (marker,) = ledger.read_markers(ledger.list_units("transfer"))
    assert schema.read_parquet(ledger.read_data(marker), name="x").num_rows == 0


def test_an_empty_or_truncated_shard_is_an_error(job: Job, tmp_path: Path) -> None:
    (tmp_path / "in" / "s-0.tar").write_bytes(shards.write_tar([]))
    damaged = tmp_path / "in" / "s-1.tar"
    damaged.write_bytes(damaged.read_bytes()[:-10240])
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    empty, truncated = list_pending(plan, ledger)
    generator = Generator(plan, ledger, CPU)
    with pytest.raises(ShardError, match="holds no samples"):
        generator.run(empty)
    with pytest.raises(ShardError, match="s-1"):
        generator.run(truncated)
    assert list(ledger.list_units("original")) == []


def test_a_shard_that_changes_during_a_run_is_an_error(job: Job, tmp_path: Path) -> None:
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    first, second, *_ = list_pending(plan, ledger, workers=4)
    generator = Generator(plan, ledger, CPU)
    generator.run(first)
    write_shard(tmp_path / "in" / "s-0.tar", [sample(50 + index) for index in range(10)])
    with pytest.raises(ShardError, match="changed since"):
        generator.run(second)


def test_the_committed_original_is_attacked_whatever_decoder_made_it(job: Job, tmp_path: Path) -> None:
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    (_, item) = list_pending(plan, ledger)
    nothing = ledger.list_committed(outline.all_scopes(plan.outline))
    first_parts = OriginalParts(Generator(plan, ledger, CPU), item, nothing, attempt=1)
    (made,) = [make() for _, make in first_parts.incomplete()]
    second = new_ledger(tmp_path / "second")
    changed = made.pixels.clone()
    changed[:, :, 0, 0] ^= 1
    tar = shards.write_tar(
        {"__key__": key, "png": codec.encode(image), "cls": str(label).encode()}
        for key, label, image in zip(made.keys, made.labels.tolist(), changed, strict=True)
    )
    facts = {
        "pixels_sha256": codec.pixels_sha256(changed),
        "shard": {"sha256": sha256((tmp_path / "in" / "s-1.tar").read_bytes())},
    }
    second.commit(Unit(plan.dataset, Part("s-1", 0, 1)), tar, "tar", facts)
    second_parts = OriginalParts(Generator(plan, second, CPU), item, nothing, attempt=1)
    (attacked,) = [read() for _, read in second_parts.incomplete()]
    assert torch.equal(attacked.pixels, changed)


def test_a_fraction_of_the_images_is_used(job: Job, tmp_path: Path) -> None:
    half = replace(job, data=replace(job.data, fraction=0.5))
    plan, ledger = make_plan(half), new_ledger(tmp_path / "store")
    run_stages(plan, ledger)
    facts = [marker.facts for marker in ledger.read_markers(ledger.list_units("original"))]
    assert sum(fact["n_in"] + fact["n_not_chosen"] for fact in facts) == 13
    assert 0 < sum(fact["n_in"] for fact in facts) < 13


def test_a_stored_tar_that_is_not_a_part_is_an_error() -> None:
    with pytest.raises(ShardError, match="sample a: no label"):
        parts.decode_tar(shards.write_tar([{"__key__": "a", "png": b"x"}]), name="x")
    with pytest.raises(ShardError, match="undecodable"):
        parts.decode_tar(shards.write_tar([{"__key__": "a", "png": b"x", "cls": b"1"}]), name="x")
