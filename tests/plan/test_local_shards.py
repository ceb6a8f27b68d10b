"""What is known of shards before workers start: numbers of parts, and that none of their images can be used."""

import gzip
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from pipeline.data import codec, shard_list
from pipeline.data.sample import ShardFile
from pipeline.errors import RecipeError
from pipeline.plan import external, local_shards
from pipeline.plan.external import ExternalAttack
from pipeline.plan.job import Job
from pipeline.plan.local_shards import count_parts
from pipeline.plan.outline import ShardSelection
from tests.samples import SIDE, attack, jpeg, sample, tiny_job, write_shard


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return tiny_job(tmp_path, tmp_path / "never read", part_size=3)


def count(job: Job, limit: int | None = None) -> dict[str, int]:
    return count_parts([ShardSelection(shard, limit) for shard in shard_list.find_shards(job.data.shards)], job)


def test_local_shards_are_counted_where_they_are_few_and_whole(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        write_shard(tmp_path / f"s{number}.tar", [sample(index) for index in range(number + 1)])
    monkeypatch.setattr(local_shards, "_MOST_READ", 8)
    damaged = tmp_path / "s3.tar"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert count(job) == {"s0": 1, "s1": 1, "s2": 1, "s4": 2, "s5": 2, "s6": 3, "s7": 3}
    write_shard(tmp_path / "s8.tar", [sample(0)])
    assert count(job) == {}


def test_of_remote_shards_those_are_known_whose_images_are_limited(job: Job) -> None:
    files = [ShardFile(f"s3://bucket/{name}.tar", name, 1, "v") for name in "ab"]
    assert count_parts([ShardSelection(files[0], 4), ShardSelection(files[1], None)], job) == {"a": 2}


def test_shards_of_which_no_image_can_be_used_are_refused(tmp_path: Path, job: Job) -> None:
    good, unlabelled = sample(0), {"__key__": "a", "jpg": jpeg(0)}
    no_image, wrong_label = {**sample(1), "jpg": b"png"}, {**sample(2), "cls": b"10"}
    write_shard(tmp_path / "s.tar", [unlabelled, {**unlabelled, "__key__": "b"}, no_image, wrong_label])
    with pytest.raises(RecipeError, match="shard s: no image can be used: 2 of 4: no label: no cls"):
        count(job)
    write_shard(tmp_path / "t.tar", [no_image])
    with pytest.raises(RecipeError, match=r"2 of 4.*the first fault of 2 shards, all of which have one"):
        count(job)
    write_shard(tmp_path / "t.tar", [no_image, good])
    assert count(job) == {"s": 2, "t": 1}
    with pytest.raises(RecipeError, match="no image can be used"):
        count(job, limit=1)


def test_what_was_begun_is_left_to_workers_also_where_nothing_can_be_used(tmp_path: Path, job: Job) -> None:
    write_shard(tmp_path / "s.tar", [{"__key__": "a", "jpg": b"png"}])
    selections = [ShardSelection(shard, None) for shard in shard_list.find_shards(job.data.shards)]
    assert count_parts(selections, job, is_new=False) == {"s": 1}


def test_images_that_a_fraction_leaves_out_do_not_count(tmp_path: Path, job: Job) -> None:
    write_shard(tmp_path / "s.tar", [{"__key__": "a", "jpg": b"png"}])
    assert count(replace(job, data=replace(job.data, fraction=1e-9))) == {"s": 1}


def test_a_compressed_shard_is_left_to_workers(tmp_path: Path, job: Job) -> None:
    (tmp_path / "s.tar").write_bytes(gzip.compress(b"no tar"))
    assert count(job) == {}


def test_a_target_class_that_shards_lack_is_missed_at_once(tmp_path: Path, job: Job) -> None:
    job = replace(job, attacks=(attack("mi", target_class="shard"),))
    write_shard(tmp_path / "s.tar", [sample(0)])
    with pytest.raises(RecipeError, match="sample 'image00000' has no target class"):
        count(job)
    write_shard(tmp_path / "s.tar", [sample(1), {**sample(0), "target": b"1"}])
    assert count(job) == {"s": 1}, "of one part of it, something can be made"
    write_shard(tmp_path / "s.tar", [sample(0)])
    assert count(replace(job, attacks=(attack("i"), *job.attacks))) == {"s": 1}, "one of the attacks can be made"


def test_images_of_another_program_that_do_not_fit_are_missed_at_once(tmp_path: Path, job: Job) -> None:
    (tmp_path / "adv").mkdir()
    pixels = torch.zeros((3, SIDE, SIDE), dtype=torch.uint8)
    (tmp_path / "adv" / "other.png").write_bytes(codec.encode(pixels))
    write_shard(tmp_path / "s.tar", [sample(0)])
    images = external.read_external_images(str(tmp_path / "adv"), source="net")
    theirs = replace(job, sources=(images,), attacks=(ExternalAttack("theirs", Fraction(1, 255), "linf"),))
    with pytest.raises(RecipeError, match="no image for 'image00000'"):
        count(theirs)
    write_shard(tmp_path / "s.tar", [sample(0), {"__key__": "other", "png": codec.encode(pixels), "cls": b"0"}])
    assert count(theirs) == {"s": 1}, "one of them fits"
