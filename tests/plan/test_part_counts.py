"""Numbers of parts that are known before a run reads its shards."""

from pathlib import Path

from pipeline.data import shard_list
from pipeline.data.sample import ShardFile
from pipeline.plan.outline import ShardSelection
from pipeline.plan.part_counts import count_parts
from tests.samples import sample, write_shard


def selections(folder: Path) -> list[ShardSelection]:
    return [ShardSelection(shard, None) for shard in shard_list.find_shards([f"{folder}/*.tar"])]


def test_local_shards_are_counted_where_they_are_few_and_whole(tmp_path: Path) -> None:
    for number in range(8):
        write_shard(tmp_path / f"s{number}.tar", [sample(index) for index in range(number + 1)])
    damaged = tmp_path / "s3.tar"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    counts = count_parts(selections(tmp_path), 3)
    assert counts == {"s0": 1, "s1": 1, "s2": 1, "s4": 2, "s5": 2, "s6": 3, "s7": 3}
    write_shard(tmp_path / "s8.tar", [sample(0)])
    assert count_parts(selections(tmp_path), 3) == {}


def test_of_remote_shards_those_are_known_whose_images_are_limited() -> None:
    files = [ShardFile(f"s3://bucket/{name}.tar", name, 1, "v") for name in "ab"]
    chosen = [ShardSelection(files[0], 513), ShardSelection(files[1], None)]
    assert count_parts(chosen, 512) == {"a": 2}
