import hashlib
import importlib.metadata
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import timm.data
import torch
import webdataset

from pipeline.data import parts
from pipeline.data.sample import Part
from pipeline.errors import IntegrityError, MissingError
from pipeline.ledger import Ledger, Unit
from pipeline.maintenance import card, finalize, verify
from pipeline.maintenance.card import Card, Dataset, Network
from pipeline.plan import resolve
from pipeline.plan.resolve import Job
from pipeline.results import schema
from pipeline.stages import Generator, Scorer
from pipeline.storage import Storage
from tests.samples import attack, pending, sample, tiny_job, write_shard

IMAGES = 10 + 3
ATTACKS = 2
SLOT = {"clean": IMAGES, "transfer": IMAGES * ATTACKS}
VERSIONS = {"versions": {"gnp": "0"}}


def ledger_in(folder: Path) -> Ledger:
    return Ledger(Storage(str(folder), create=True))


def make(job: Job, ledger: Ledger, *, workers: int = 1) -> None:
    """Everything that a job asks for, as a run makes it; the one place that knows how the stages are called."""
    planned = resolve.resolve(job, ledger.storage)
    ledger.record_plan(planned.describe())
    generator, scorer = (stage(planned, ledger, torch.device("cpu")) for stage in (Generator, Scorer))
    for item in pending(planned, ledger, workers=workers):
        generator.run(item)
        scorer.run(item)


def job_over(folder: Path, checkpoint: Path, **settings: Any) -> Job:
    write_shard(folder / "s-0.tar", [sample(index) for index in range(10)])
    write_shard(folder / "s-1.tar", [sample(100 + index) for index in range(3)])
    return tiny_job(folder, checkpoint, attacks=(attack("noise"), attack("gnp+mi", name="target+mi")), **settings)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Job:
    return job_over(tmp_path_factory.mktemp("in"), tiny_checkpoint)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, job: Job) -> Path:
    folder = tmp_path_factory.mktemp("made") / "store"
    make(job, ledger_in(folder))
    return folder


@pytest.fixture
def ledger(made: Path, tmp_path: Path) -> Ledger:
    shutil.copytree(made, tmp_path / "copy")
    return ledger_in(tmp_path / "copy")


def at(ledger: Ledger, key: str) -> Path:
    return Path(ledger.storage.at(key))


def files(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """Every object with its inode and time: both are new once it has been written again."""
    stats = {item.key: at(ledger, item.key).stat() for item in ledger.storage.list()}
    return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in stats.items()}


def contents(ledger: Ledger) -> dict[str, bytes]:
    """What finalize has written."""
    keys = [item.key for item in ledger.storage.list("versions")]
    return {key: ledger.storage.get(key) for key in [*keys, "_info.json", "README.md", "latest.json"]}


def compacted(ledger: Ledger, version: finalize.Version, kind: str) -> list[schema.Table]:
    keys = sorted(item.key for item in ledger.storage.list(version.key) if f"/{kind}/" in item.key)
    return [schema.read(ledger.storage.get(key), name=key) for key in keys]


def manifest_of(ledger: Ledger, version: finalize.Version) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(ledger.storage.get(f"{version.key}/manifest.json"))
    return read


def commit_clean(ledger: Ledger, part: Part, keys: list[str], **facts: Any) -> None:
    """A result made by hand, with the facts that finalize asks for unless told otherwise."""
    columns = {
        "dataset": "data-0",
        "shard": part.shard,
        "part": part.index,
        "key": keys,
        "label": [0] * len(keys),
        "target": "x",
        "target_id": "x-id",
        "policy": "direct",
        "defense": "",
        "abstained": False,
        "weights_sha256": "w",
        "pixels_sha256": ["p"] * len(keys),
        "prediction": [0] * len(keys),
        "label_probability": [0.5] * len(keys),
    }
    unit = Unit("data-0", part, target="x-id")
    said = {"n": len(keys), "target": {"model": "x"}, **VERSIONS, **facts}
    ledger.commit(unit, schema.write(schema.table(schema.CLEAN, columns)), "parquet", said)


def test_a_version_holds_every_committed_row_and_names_every_object(ledger: Ledger) -> None:
    version = finalize.finalize(ledger)
    assert (version.rows, version.images, version.missing) == (sum(SLOT.values()), IMAGES * ATTACKS, 0)
    for kind, rows in SLOT.items():
        (table,) = compacted(ledger, version, kind)
        units = sorted(ledger.units(kind))
        committed = [schema.read(ledger.read(marker), name="x") for marker in ledger.markers(units)]
        assert table.num_rows == rows
        assert table.to_pylist() == [row for each in committed for row in each.to_pylist()]
    manifest = manifest_of(ledger, version)
    objects = {item.key for folder in ("shards", "results") for item in ledger.storage.list(folder)}
    assert {entry["object"] for entry in manifest["objects"]} == objects
    assert version.objects == len(objects) == len(manifest["objects"])
    for entry in manifest["objects"]:
        ledger.storage.get(entry["object"], sha256_hex=entry["sha256"])
    assert (manifest["complete"], manifest["rows"]) == (True, SLOT)


def test_the_root_points_at_the_version_and_the_manifest_at_its_files(ledger: Ledger) -> None:
    version = finalize.finalize(ledger)
    latest = json.loads(ledger.storage.get("latest.json"))
    assert (latest["version"], latest["manifest"]) == (version.id, f"{version.key}/manifest.json")
    ledger.storage.get(latest["manifest"], sha256_hex=latest["manifest_sha256"])
    listed = {entry["name"]: entry for entry in manifest_of(ledger, version)["files"]}
    lying = {item.key.removeprefix(f"{version.key}/"): item.size_bytes for item in ledger.storage.list(version.key)}
    del lying["manifest.json"]
    assert {name: entry["size_bytes"] for name, entry in listed.items()} == lying
    for name, entry in listed.items():
        assert hashlib.sha256(ledger.storage.get(f"{version.key}/{name}")).hexdigest() == entry["sha256"]
    for name in ("_info.json", "README.md"):
        assert ledger.storage.get(name) == ledger.storage.get(f"{version.key}/{name}")


def test_a_second_time_writes_nothing(ledger: Ledger) -> None:
    first = finalize.finalize(ledger)
    before = files(ledger)
    assert finalize.finalize(ledger) == first
    assert files(ledger) == before


def test_the_same_commits_made_elsewhere_give_the_same_bytes(ledger: Ledger, job: Job, tmp_path: Path) -> None:
    other = ledger_in(tmp_path / "other")
    make(job, other, workers=6)
    assert finalize.finalize(other) == finalize.finalize(ledger)
    assert contents(other) == contents(ledger)


def test_another_commit_is_another_version_and_the_old_one_stays(ledger: Ledger, job: Job) -> None:
    first = finalize.finalize(ledger)
    before = {key: data for key, data in contents(ledger).items() if key.startswith("versions/")}
    make(replace(job, attacks=(*job.attacks, attack("i"))), ledger)
    second = finalize.finalize(ledger)
    assert second.id != first.id
    assert second.images == first.images + IMAGES
    assert before.items() <= contents(ledger).items()
    assert json.loads(ledger.storage.get("latest.json"))["version"] == second.id


def test_an_older_version_never_takes_the_place_of_a_newer_one(
    ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nights finalize at once: the first, which knows less, is through with its files last."""
    make_version, newer = finalize._make, list[finalize.Version]()

    def slowly(*arguments: Any) -> None:
        make_version(*arguments)
        monkeypatch.setattr(finalize, "_make", make_version)
        make(replace(job, attacks=(*job.attacks, attack("i"))), ledger)
        newer.append(finalize.finalize(ledger))

    monkeypatch.setattr(finalize, "_make", slowly)
    assert [finalize.finalize(ledger)] == newer
    assert json.loads(ledger.storage.get("latest.json"))["version"] == newer[0].id


def test_rows_are_cut_into_files_of_at_most_so_many(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finalize.finalize(ledger)
    (one,) = compacted(ledger, whole, "transfer")
    at(ledger, f"{whole.key}/manifest.json").unlink()
    monkeypatch.setattr(finalize, "ROWS_PER_FILE", 3)
    tables = compacted(ledger, finalize.finalize(ledger), "transfer")
    assert [table.num_rows for table in tables] == [3] * 8 + [2]
    assert [row for table in tables for row in table.to_pylist()] == one.to_pylist()


@pytest.mark.parametrize("most", [1, 2, 4, 7, 100])
def test_compaction_keeps_every_row_in_order(most: int, ledger: Ledger) -> None:
    markers = ledger.markers(sorted(ledger.units("transfer")))
    tables = [schema.read(ledger.read(marker), name="x") for marker in markers]
    made = [schema.read(data, name="x") for data in schema.compact(tables, rows_per_file=most)]
    assert {table.num_rows for table in made[:-1]} <= {most}
    assert 0 < made[-1].num_rows <= most
    assert [row for table in made for row in table.to_pylist()] == [
        row for table in tables for row in table.to_pylist()
    ]


def test_a_damaged_result_is_an_error_and_no_version(ledger: Ledger) -> None:
    (marker, *_) = ledger.markers(sorted(ledger.units("transfer")))
    at(ledger, marker.object).write_bytes(ledger.read(marker)[:-1] + b"\0")
    with pytest.raises(IntegrityError, match="damaged"):
        finalize.finalize(ledger)
    assert not [item for item in ledger.storage.list() if "manifest" in item.key or item.key == "latest.json"]


def test_a_result_damaged_later_is_an_error_too(ledger: Ledger) -> None:
    finalize.finalize(ledger)
    (marker, *_) = ledger.markers(sorted(ledger.units("clean")))
    at(ledger, marker.object).unlink()
    with pytest.raises(MissingError, match="no such object"):
        finalize.finalize(ledger)


def test_a_damaged_version_is_an_error_and_is_made_anew_without_its_manifest(ledger: Ledger) -> None:
    version = finalize.finalize(ledger)
    before = contents(ledger)
    damaged = at(ledger, f"{version.key}/clean/00000.parquet")
    damaged.write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"damaged.*or remove this manifest and finalize again"):
        finalize.finalize(ledger)
    at(ledger, f"{version.key}/manifest.json").unlink()
    assert finalize.finalize(ledger) == version
    assert contents(ledger) == before


@pytest.mark.parametrize("junk", [b"", b"[]", b'{"files": 1}', b'{"version": "other", "files": []}'])
def test_what_is_no_manifest_is_an_error(ledger: Ledger, junk: bytes) -> None:
    version = finalize.finalize(ledger)
    ledger.storage.put(f"{version.key}/manifest.json", junk)
    with pytest.raises(IntegrityError, match="remove this manifest"):
        finalize.finalize(ledger)


def test_an_incomplete_store_is_refused_unless_partial(ledger: Ledger) -> None:
    complete = finalize.finalize(ledger)
    unit = max(ledger.units("transfer"))
    at(ledger, unit.marker).unlink()
    with pytest.raises(MissingError, match=r"0 shards and 1 results .* run generate again, or pass partial"):
        finalize.finalize(ledger)
    version = finalize.finalize(ledger, partial=True)
    assert version.id != complete.id
    assert (version.missing, version.objects) == (1, complete.objects - 1)
    manifest = manifest_of(ledger, version)
    assert (manifest["complete"], manifest["missing_shards"], manifest["missing_results"]) == (False, 0, 1)
    assert b"**This version is incomplete:** 0 input shards and 1 results" in ledger.storage.get("README.md")
    assert version.rows == complete.rows - 3


def test_a_shard_of_which_nothing_is_known_is_missing(ledger: Ledger) -> None:
    (key,) = ledger.plans()
    ledger.record_plan({**ledger.plan(key), "shards": ["s-0", "s-1", "s-2"]})
    with pytest.raises(MissingError, match="1 shards and 0 results"):
        finalize.finalize(ledger)
    assert finalize.finalize(ledger, partial=True).missing == 1


def test_an_orphan_is_never_data(ledger: Ledger) -> None:
    expected = finalize.finalize(ledger)
    for kind in ("transfer", "adversarial"):
        marker = ledger.marker(min(ledger.units(kind)))
        name, _, extension = marker.object.rpartition(".")
        ledger.storage.put(f"{name}0.{extension}", ledger.read(marker))
    at(ledger, f"{expected.key}/manifest.json").unlink()
    assert finalize.finalize(ledger) == expected


def test_on_a_folder_and_on_s3_a_version_is_the_same(storage: Storage, ledger: Ledger) -> None:
    for item in ledger.storage.list():
        storage.put(item.key, ledger.storage.get(item.key))
    other = Ledger(storage)
    assert finalize.finalize(other) == finalize.finalize(other) == finalize.finalize(ledger)
    assert contents(other) == contents(ledger)


def test_a_stray_file_in_a_version_is_an_error(ledger: Ledger) -> None:
    version = finalize.finalize(ledger)
    ledger.storage.put(f"{version.key}/transfer/00001.parquet", b"x")
    with pytest.raises(IntegrityError, match=r"transfer/00001.parquet: not in the manifest; remove it"):
        finalize.finalize(ledger)


def test_an_audit_finds_nothing_wrong_with_a_finalized_store(ledger: Ledger) -> None:
    finalize.finalize(ledger)
    assert verify.audit(ledger).problems == []


def test_an_empty_store_is_no_version(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nothing is committed here yet"):
        finalize.finalize(ledger_in(tmp_path / "empty"), partial=True)


def test_two_divisions_of_a_shard_are_an_error(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path / "store")
    commit_clean(ledger, Part("s", 0, 1), ["a"])
    commit_clean(ledger, Part("s", 0, 2), ["a"])
    with pytest.raises(IntegrityError, match="other markers divide this shard into 1 parts"):
        finalize.finalize(ledger)


@pytest.mark.parametrize(("first", "second"), [(["a", "b"], ["c", "a"]), (["a"], ["b", "b"])])
def test_a_row_that_is_there_twice_is_an_error(tmp_path: Path, first: list[str], second: list[str]) -> None:
    ledger = ledger_in(tmp_path / "store")
    commit_clean(ledger, Part("s", 0, 2), first)
    commit_clean(ledger, Part("s", 1, 2), second)
    commit_clean(ledger, Part("t", 0, 1), first)
    with pytest.raises(IntegrityError, match=r"00001-of-00002.*holds a row that is there twice"):
        finalize.finalize(ledger)


def test_keys_of_other_shards_are_other_rows(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path / "store")
    for shard in ("s", "t"):
        commit_clean(ledger, Part(shard, 0, 1), ["a", "b"])
    assert finalize.finalize(ledger).rows == 4


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"n": 3}, "holds 2 rows, its marker says 3"),
        ({"n": -1}, "n = -1 is no count"),
        ({"n": "2"}, "n = '2' is no count"),
        ({"target": None}, "target = None describes nothing"),
        ({"versions": []}, r"versions = \[\] describes nothing"),
    ],
)
def test_facts_that_cannot_be_are_errors(tmp_path: Path, facts: dict[str, Any], says: str) -> None:
    ledger = ledger_in(tmp_path / "store")
    commit_clean(ledger, Part("s", 0, 1), ["a", "b"], **facts)
    with pytest.raises(IntegrityError, match=says):
        finalize.finalize(ledger)


def test_a_fact_that_is_missing_is_an_error(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path / "store")
    ledger.commit(Unit("data-0", Part("s", 0, 1)), b"", "tar", {"n_ok": 0, "n_in": 0})
    with pytest.raises(IntegrityError, match="does not say n_quarantined"):
        finalize.finalize(ledger)


def test_rows_of_another_unit_are_an_error(ledger: Ledger) -> None:
    clean, *_ = ledger.markers(sorted(ledger.units("clean")))
    for unit in (replace(clean.unit, target="other-0"), replace(clean.unit, dataset="other-0")):
        copied = ledger_in(at(ledger, "").parent / unit.dataset / unit.target)
        copied.commit(unit, ledger.read(clean), "parquet", clean.facts)
        with pytest.raises(IntegrityError, match=r"is not 'other-0' throughout"):
            finalize.finalize(copied)


def test_nothing_of_this_machine_or_of_the_input_s_place_is_told(ledger: Ledger, job: Job) -> None:
    finalize.finalize(ledger)
    (marker, *_) = ledger.markers(ledger.units("original"))
    host = marker.facts["worker"].partition(":")[0]
    for key, data in contents(ledger).items():
        assert job.data.shards[0].rpartition("/")[0].encode() not in data, key
        assert ledger.storage.url.encode() not in data, key
        assert f'"{host}'.encode() not in data, key


def test_duckdb_reads_the_compacted_files(ledger: Ledger) -> None:
    version = finalize.finalize(ledger)
    query = "select source, attack, target, count(*), count(distinct (shard, key)) from '{}' group by all order by all"
    found = duckdb.execute(query.format(f"{ledger.storage.at(version.key)}/transfer/*.parquet")).fetchall()
    assert found == [("tiny", name, "tiny", IMAGES, IMAGES) for name in ("noise", "target+mi")]
    each = query.format(f"{ledger.storage.at('results/transfer')}/**/*.parquet")
    assert duckdb.execute(each).fetchall() == found


def digests_by_timm(ledger: Ledger, split: str) -> list[tuple[str, int]]:
    """What timm's reader yields, in order: a digest of the pixels, and the label."""
    read = timm.data.create_dataset("wds/gnp", root=ledger.storage.url, split=split, is_training=False)
    found = [(hashlib.sha256(np.asarray(image).tobytes()).hexdigest(), int(label)) for image, label in read]
    assert len(read) == len(found)
    return found


def digests_stored(ledger: Ledger, kind: str, attack_id: str = "") -> list[tuple[str, int]]:
    found = []
    for marker in ledger.markers(sorted(ledger.units(kind))):
        images = parts.read(ledger.read(marker), name=marker.object)
        pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        if marker.unit.attack.startswith(attack_id):
            found += [
                (hashlib.sha256(p.tobytes()).hexdigest(), int(y)) for p, y in zip(pixels, images.labels, strict=True)
            ]
    return found


def test_timm_reads_every_sample_once(ledger: Ledger) -> None:
    finalize.finalize(ledger)
    splits = json.loads(ledger.storage.get("_info.json"))["splits"]
    assert digests_by_timm(ledger, "adversarial") == digests_stored(ledger, "adversarial")
    assert digests_by_timm(ledger, "original") == digests_stored(ledger, "original")
    for attack_id in {unit.attack for unit in ledger.units("adversarial")}:
        (source,) = {unit.source for unit in ledger.units("adversarial")}
        split = finalize.split_name("adversarial", source, attack_id)
        assert splits[split]["num_samples"] == IMAGES
        assert digests_by_timm(ledger, split) == digests_stored(ledger, "adversarial", attack_id)
    assert len(splits) == 2 + ATTACKS


def test_webdataset_reads_every_sample_once(ledger: Ledger) -> None:
    finalize.finalize(ledger)
    names = json.loads(ledger.storage.get("_info.json"))["splits"]["adversarial"]["filenames"]
    read = webdataset.WebDataset([ledger.storage.at(name) for name in names], shardshuffle=False).decode("pil")
    assert sum(1 for each in read if each["png"].size == (32, 32)) == IMAGES * ATTACKS


def test_parts_of_one_image_are_read_whole_though_their_keys_follow_one_another(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    ledger = ledger_in(tmp_path / "store")
    make(job_over(tmp_path / "in", tiny_checkpoint, part_size=1), ledger)
    finalize.finalize(ledger)
    assert digests_by_timm(ledger, "adversarial") == digests_stored(ledger, "adversarial")
    assert len(digests_by_timm(ledger, "adversarial")) == IMAGES * ATTACKS


def test_parts_without_images_are_in_no_split(tmp_path: Path, tiny_checkpoint: Path) -> None:
    bad = [{"__key__": f"bad{index}", "jpg": b"x", "cls": b"1"} for index in range(4)]
    write_shard(tmp_path / "in" / "s.tar", [*bad, sample(0)])
    ledger = ledger_in(tmp_path / "store")
    make(tiny_job(tmp_path / "in", tiny_checkpoint), ledger)
    version = finalize.finalize(ledger)
    assert (version.images, version.rows) == (1, 2)
    splits = json.loads(ledger.storage.get("_info.json"))["splits"]
    assert {name: split["shard_lengths"] for name, split in splits.items()} == {name: [1] for name in splits}
    assert len(digests_by_timm(ledger, "original")) == 1
    assert "1 adversarial images of 1 originals; 4 input images could not be used" in (
        ledger.storage.get("README.md").decode()
    )


def test_splits_of_several_datasets_are_told_apart(ledger: Ledger, job: Job) -> None:
    make(replace(job, data=replace(job.data, name="start..again")), ledger)
    version = finalize.finalize(ledger)
    assert version.images == 2 * IMAGES * ATTACKS
    names = json.loads(ledger.storage.get("_info.json"))["splits"].keys()
    assert len(names) == 2 * (2 + ATTACKS)
    (split,) = (name for name in names if name.startswith("st-rt-again") and name.endswith(":original"))
    assert len(digests_by_timm(ledger, split)) == IMAGES


@pytest.mark.parametrize(
    "piece", ["target", "a..b", "...", "tatarr", "t..ar", "x.tar", "a b|c\n", "Ünï", "ta{r}", "tar" * 3]
)
def test_a_split_s_name_is_never_taken_for_a_pattern(piece: str) -> None:
    name = finalize.split_name("adversarial", piece, ".x")
    assert "tar" not in name
    assert ".." not in name
    assert name.startswith("adversarial:")
    assert not set(name) & set(' |{}"\n`')


HOSTILE = "a|b`c`\n# d <script>x</script> [e](javascript:f) *g* \\| _h_ \u202e&amp;"


def hostile_card() -> Card:
    return Card(
        version="0" * 12,
        datasets=[Dataset(HOSTILE, 1, 2, 1, 1, 5000)],
        sources=[Network(HOSTILE, HOSTILE, {"model": HOSTILE, "digest": HOSTILE, "policy": HOSTILE})],
        targets=[Network(HOSTILE, HOSTILE, {})],
        attacks={HOSTILE: {"name": HOSTILE, "epsilon": "8/255", HOSTILE: [{"kind": HOSTILE, "r": HOSTILE}]}},
        splits={"original": 1},
        rows={"clean": 1, "transfer": 1},
        software={HOSTILE: [HOSTILE]},
        plans=[HOSTILE],
        missing_shards=0,
        missing_results=0,
    )


def test_hostile_names_are_text_in_a_card() -> None:
    said = card.text(hostile_card())
    for piece in ("<script", "</script", "`c", "[e]", "*g*", "\\", "_h_", "\u202e", "\n#  d", "\n# d", "&amp;"):
        assert piece not in said
    tables = [block.splitlines() for block in said.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for lines in tables:
        assert {line.count("|") for line in lines} == {lines[0].count("|")}
        assert all(line.startswith("| ") and line.endswith(" |") for line in lines)


def test_a_value_is_one_line_and_no_longer_than_can_be_read() -> None:
    assert card.escape("tf_efficientnet_lite0 gnp+mi 16/255 a.b-c") == "tf_efficientnet_lite0 gnp+mi 16/255 a.b-c"
    assert card.escape("a\r\n\x00\u2028b") == "a    b"
    assert card.escape("&|") == "&#38;&#124;"
    assert len(card.escape("x" * 10_000)) < 1000


@pytest.mark.parametrize(
    ("images", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**9, "1B<n<10B")],
)
def test_a_card_s_header_says_how_many_images(images: int, category: str) -> None:
    said = replace(hostile_card(), datasets=[Dataset("d", 1, 2, 1, 1, images)])
    header = card.text(said).split("---\n")[1]
    assert f"size_categories:\n- {category}\n" in header
    assert "license: other\n" in header
    assert "task_categories:\n- image-classification\n" in header


def test_a_card_says_what_was_done(ledger: Ledger) -> None:
    version = finalize.finalize(ledger)
    said = ledger.storage.get("README.md").decode()
    (key,) = ledger.plans()
    for piece in (
        f"versions/{version.id}/manifest.json",
        f"- plan: {key}",
        f"{IMAGES * ATTACKS} adversarial images of {IMAGES} originals; 0 input images could not be used",
        "- 2 attacks, 1 sources, 1 targets",
        f"{SLOT['clean']} clean and {SLOT['transfer']} transfer predictions",
        "| source | tiny | test_resnet |",
        "| target+mi | 8/255 | 2 | 4/255 | 1.0 | GradientNormPenalty(beta = 0.8, form = literal, norm = l2, r = 0.01)",
        "| noise | 8/255 | – |",
        f"| torch | {importlib.metadata.version('torch')} |",
        "remain under its terms",
        "ETHICS.md",
    ):
        assert piece in said
    assert "incomplete" not in said


def test_what_a_card_tells_to_run_runs(ledger: Ledger) -> None:
    finalize.finalize(ledger)
    said = ledger.storage.get("README.md").decode().replace("STORE", ledger.storage.url)
    blocks = [block.split("\n", 1) for block in said.split("```")[1::2] if "\n" in block]
    (python,) = (code for language, code in blocks if language == "python")
    left: dict[str, Any] = {}
    exec(python, left)
    assert len(list(left["images"])) == IMAGES * ATTACKS
    assert {"__key__", "png", "cls"} <= left["sample"].keys()
    transfer, clean = (duckdb.execute(code).fetchall() for language, code in blocks if language == "sql")
    assert [row[:4] for row in sorted(transfer)] == [("tiny", name, "tiny", IMAGES) for name in ("noise", "target+mi")]
    assert [row[:2] for row in clean] == [("tiny", IMAGES)]
