import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import codec, parts, shards
from pipeline.ledger import Ledger, Marker
from pipeline.maintenance.finalize import finalize
from pipeline.maintenance.verify import audit
from pipeline.results import schema
from pipeline.storage import Storage
from tests.maintenance.stores import fill_store
from tests.samples import attack, sample, tiny_job, write_shard


@pytest.fixture
def ledger(sound_objects: dict[str, bytes], tmp_path: Path) -> Ledger:
    storage = Storage(str(tmp_path / "store"), create=True)
    for key, data in sound_objects.items():
        storage.put(key, data)
    return Ledger(storage)


def first(ledger: Ledger, kind: str, containing: str = "") -> Marker:
    unit = next(unit for unit in sorted(ledger.list_units(kind)) if containing in unit.attack)
    return ledger.read_marker(unit)


def rewrite(ledger: Ledger, marker: Marker, data: bytes, **facts: object) -> None:
    """Replaces a unit's data and makes its marker agree: damage that no hash reveals."""
    record = json.loads(ledger.storage.get(marker.unit.marker_key))
    ledger.storage._folder.joinpath(marker.unit.marker_key).unlink()  # type: ignore[union-attr]
    ledger.commit(marker.unit, data, marker.object.rpartition(".")[2], {**record["facts"], **facts})


def records_of(tar: bytes) -> list[dict[str, Any]]:
    """The samples of a tar, as `shards.write_tar` takes them."""
    return [
        {name: value for name, value in record.items() if name != "__url__"}
        for record in shards.read_records(tar, name="x")
    ]


def problems(ledger: Ledger) -> list[str]:
    return [f"{problem.address}: {problem.message}" for problem in audit(ledger).problems]


def test_a_sound_store_has_no_problems(ledger: Ledger) -> None:
    report = audit(ledger)
    assert report.problems == []
    assert report.images == 12
    assert report.objects == 2 + 4 + 2 + 4


def flip_bit(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial")
    data = bytearray(ledger.storage.get(marker.object))
    data[700] ^= 1
    ledger.storage.put(marker.object, bytes(data))


def delete_object(ledger: Ledger) -> None:
    ledger.storage._folder.joinpath(first(ledger, "transfer").object).unlink()  # type: ignore[union-attr]


def delete_marker(ledger: Ledger) -> None:
    ledger.storage._folder.joinpath(first(ledger, "transfer").unit.marker_key).unlink()  # type: ignore[union-attr]


def junk_marker(ledger: Ledger) -> None:
    ledger.storage.put(first(ledger, "clean").unit.marker_key, b"{")


def unknown_marker(ledger: Ledger) -> None:
    ledger.storage.put("markers/notes.txt", b"hello")


def exceed_epsilon(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial", "mi")
    tar = ledger.read_data(marker)
    images = parts.decode_tar(tar, name="x")
    pixels = images.pixels.clone()
    pixels[1, 0, 0, 0] = 255 if pixels[1, 0, 0, 0] < 128 else 0
    samples = [{**record, "png": codec.encode(image)} for record, image in zip(records_of(tar), pixels, strict=True)]
    rewrite(ledger, marker, shards.write_tar(samples), pixels_sha256=codec.pixels_sha256(pixels))


def drop_image(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial", "mi")
    samples = records_of(ledger.read_data(marker))
    images = parts.decode_tar(shards.write_tar(samples[:-1]), name="x")
    rewrite(ledger, marker, shards.write_tar(samples[:-1]), n=3, pixels_sha256=codec.pixels_sha256(images.pixels))


def wrong_attack(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial", "mi")
    loose = {**marker.facts["attack"], "epsilon": "200/255"}
    rewrite(ledger, marker, ledger.read_data(marker), attack=loose)


def wrong_pixels_digest(ledger: Ledger) -> None:
    marker = first(ledger, "transfer")
    table = schema.read_parquet(ledger.read_data(marker), name="x")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    columns["pixels_sha256"] = ["0" * 64] * table.num_rows
    rewrite(ledger, marker, schema.to_parquet(schema.build_table(schema.TRANSFER, columns)))


def wrong_target_id(ledger: Ledger) -> None:
    marker = first(ledger, "transfer")
    table = schema.read_parquet(ledger.read_data(marker), name="x")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    rewrite(ledger, marker, schema.to_parquet(schema.build_table(schema.TRANSFER, {**columns, "target_id": "other"})))


def wrong_target_identity(ledger: Ledger) -> None:
    marker = first(ledger, "clean")
    rewrite(ledger, marker, ledger.read_data(marker), target={**marker.facts["target"], "model": "other"})


def wrong_scored_digest(ledger: Ledger) -> None:
    marker = first(ledger, "clean")
    rewrite(ledger, marker, ledger.read_data(marker), scored_sha256="0" * 64)


def wrong_distance(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial", "mi")
    samples = [{**record, "json": b'{"linf": 0.5}'} for record in records_of(ledger.read_data(marker))]
    rewrite(ledger, marker, shards.write_tar(samples))


def drop_facts(ledger: Ledger) -> None:
    marker = first(ledger, "original")
    record = ledger.storage.get_record(marker.unit.marker_key)
    ledger.storage.put_record(marker.unit.marker_key, {**record, "facts": {}}, if_absent=False)


def object_outside_the_store(ledger: Ledger) -> None:
    marker = first(ledger, "original")
    record = ledger.storage.get_record(marker.unit.marker_key)
    ledger.storage.put_record(marker.unit.marker_key, {**record, "object": "../../etc/passwd"}, if_absent=False)


def junk_parquet(ledger: Ledger) -> None:
    rewrite(ledger, first(ledger, "clean"), b"junk")


def junk_plan(ledger: Ledger) -> None:
    ledger.storage.put(ledger.plan_keys()[0], b"{}")


def wrong_count(ledger: Ledger) -> None:
    marker = first(ledger, "original")
    rewrite(ledger, marker, ledger.read_data(marker), n_in=99)


def plan_another_shard(ledger: Ledger) -> None:
    plans = ledger.read_plan(ledger.plan_keys()[0])
    ledger.record_plan({**plans, "shards": [*plans["shards"], "s-1"]})


def flip_bit_in_weights(ledger: Ledger) -> None:
    (weights,) = ledger.storage.list("weights")
    data = bytearray(ledger.storage.get(weights.key))
    data[-1] ^= 1
    ledger.storage.put(weights.key, bytes(data))


def truncate_input_record(ledger: Ledger) -> None:
    ledger.storage.put("inputs/tiny-0/0.json", b"{")


def delete_file_of_version(ledger: Ledger) -> None:
    version = finalize(ledger)
    ledger.storage.delete([f"{version.folder}/transfer/00000.parquet"])


def junk_manifest(ledger: Ledger) -> None:
    ledger.storage.put("versions/x/manifest.json", b"[]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_bit, "damaged: its"),
        (delete_object, "no such object"),
        (delete_marker, "missing; run the same command again"),
        (junk_marker, "not a record"),
        (unknown_marker, "not a marker; remove it"),
        (exceed_epsilon, "1 images lie outside epsilon = 8/255, the first 'image00001'"),
        (drop_image, "keys or labels are not those of its original"),
        (wrong_attack, "not the one that its name stands for"),
        (wrong_pixels_digest, "pixels_sha256 does not match"),
        (wrong_target_id, "its column target_id is not"),
        (wrong_target_identity, "the target that its marker describes is not the one"),
        (wrong_scored_digest, "it scores other bytes"),
        (wrong_distance, "says another distance"),
        (drop_facts, "the marker does not say pixels_sha256"),
        (object_outside_the_store, "its data cannot lie at '../../etc/passwd'"),
        (junk_parquet, "not a Parquet file"),
        (junk_plan, "not a record"),
        (wrong_count, "99 images in"),
        (plan_another_shard, "no part of this shard is committed"),
        (flip_bit_in_weights, ".safetensors: damaged"),
        (truncate_input_record, "not a record"),
        (delete_file_of_version, "transfer/00000.parquet: no such object"),
        (junk_manifest, "not a manifest"),
    ],
)
def test_damage_is_found(ledger: Ledger, damage: Callable[[Ledger], None], message: str) -> None:
    damage(ledger)
    assert any(message in line for line in problems(ledger)), problems(ledger)


def test_missing_weights_and_model_records_are_found(ledger: Ledger) -> None:
    (weights,) = ledger.storage.list("weights")
    ledger.storage.delete([weights.key])
    (problem,) = problems(ledger)
    assert problem.endswith(f"{weights.key}: missing; a run puts it back from where it first came from")
    ledger.storage.delete([stored.key for stored in ledger.storage.list("models")])
    (problem,) = problems(ledger)
    assert re.search(r"models: tiny-.*: no record of its weights; a run puts it back", problem)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda storage: storage.delete(["latest.json"]), r"latest\.json: .*no such object; finalize again"),
        (lambda storage: storage.delete(["_info.json"]), r"_info\.json: .*no such object; finalize again"),
        (
            lambda storage: storage.put("_info.json", b"{}"),
            r"_info\.json: not what the latest version has .*; finalize",
        ),
        (lambda storage: storage.put("latest.json", b"{}"), r"latest\.json: not what the latest version has"),
        (lambda storage: storage.put("latest.json", b"broken"), r"latest\.json: not what the latest version has"),
        (
            lambda storage: storage.delete(
                [s.key for s in storage.list("versions") if s.key.endswith("manifest.json")]
            ),
            r"manifest\.json: .*no such object; finalize again",
        ),
    ],
)
def test_damaged_copies_of_the_latest_version_are_found(
    ledger: Ledger, damage: Callable[[Storage], None], message: str
) -> None:
    finalize(ledger)
    assert problems(ledger) == []
    damage(ledger.storage)
    assert any(re.search(message, problem) for problem in problems(ledger)), problems(ledger)
    finalize(ledger)
    assert problems(ledger) == []


def test_an_audit_continues_after_a_problem(ledger: Ledger) -> None:
    flip_bit(ledger)
    unknown_marker(ledger)
    wrong_count(ledger)
    assert len(problems(ledger)) >= 3
    assert audit(ledger).objects == 12


def test_an_orphan_is_not_a_problem(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial")
    ledger.storage.put(marker.object.replace(".tar", "0.tar"), b"orphan")
    assert problems(ledger) == []


def test_pixels_are_hashed_again(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial", "mi")
    rewrite(ledger, marker, ledger.read_data(marker), pixels_sha256="0" * 64)
    assert any("hash to something else" in line for line in problems(ledger))


@pytest.fixture(scope="module")
def many_parts(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Ledger:
    """A sound store of 40 parts, one image each."""
    folder = tmp_path_factory.mktemp("many")
    write_shard(folder / "in" / "s-0.tar", [sample(index) for index in range(40)])
    ledger = Ledger(Storage(str(folder / "store"), create=True))
    fill_store(tiny_job(folder / "in", tiny_checkpoint, attacks=(attack("noise"),), part_size=1), ledger)
    return ledger


def test_a_fraction_re_reads_whole_parts_and_depends_on_the_seed(many_parts: Ledger) -> None:
    whole = audit(many_parts)
    assert (whole.parts, whole.total_parts, whole.objects, whole.images) == (40, 40, 160, 40)
    for fraction in (0.25, 0.5):
        report = audit(many_parts, fraction=fraction)
        assert (report.objects, report.images, report.total_parts) == (4 * report.parts, report.parts, 40)
        assert 0 < report.parts < 40
        assert audit(many_parts, fraction=fraction) == report, "the same seed takes the same parts"
    assert audit(many_parts, fraction=0.25).parts <= audit(many_parts, fraction=0.5).parts
    assert len({audit(many_parts, fraction=0.5, seed=seed).parts for seed in range(8)}) > 1
    nothing = audit(many_parts, fraction=0)
    assert (nothing.parts, nothing.objects, nothing.problems) == (0, 0, [])


def test_some_seed_draws_each_part_and_finds_its_damage(many_parts: Ledger) -> None:
    unit = next(unit for unit in many_parts.list_units("adversarial") if unit.part.index == 17)
    marker = many_parts.read_marker(unit)
    sound = many_parts.storage.get(marker.object)
    many_parts.storage.put(marker.object, sound[:-1])
    try:
        reports = [audit(many_parts, fraction=0.2, seed=seed) for seed in range(30)]
    finally:
        many_parts.storage.put(marker.object, sound)
    hits = [report for report in reports if report.problems]
    assert 0 < len(hits) < 30
    assert all("damaged" in hit.problems[0].message for hit in hits)


def test_missing_results_are_found_in_parts_that_are_not_drawn(ledger: Ledger) -> None:
    for damage in (delete_marker, unknown_marker, plan_another_shard):
        damage(ledger)
    report = audit(ledger, fraction=0)
    assert report.parts == 0
    assert len(report.problems) == 3
