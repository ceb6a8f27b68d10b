import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data import codec, parts, shards
from pipeline.ledger import Ledger, Marker
from pipeline.maintenance.finalize import finalize
from pipeline.maintenance.verify import audit
from pipeline.results import schema
from pipeline.storage import Storage
from tests.samples import attack, resolve, sample, tiny_job, write_shard
from tests.stages.test_stages import run_all


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[str, bytes]:
    """Every object of a sound store: key → bytes."""
    folder = tmp_path_factory.mktemp("pristine")
    write_shard(folder / "in" / "s-0.tar", [sample(index) for index in range(6)])
    job = tiny_job(folder / "in", tiny_checkpoint, attacks=(attack("mi"), attack("noise")))
    ledger = Ledger(Storage(str(folder / "store"), create=True))
    planned = resolve(job)
    ledger.record_plan(planned.describe())
    run_all(planned, ledger)
    return {item.key: ledger.storage.get(item.key) for item in ledger.storage.list()}


@pytest.fixture
def ledger(pristine: dict[str, bytes], tmp_path: Path) -> Ledger:
    storage = Storage(str(tmp_path / "store"), create=True)
    for key, data in pristine.items():
        storage.put(key, data)
    return Ledger(storage)


def first(ledger: Ledger, kind: str, containing: str = "") -> Marker:
    unit = next(unit for unit in sorted(ledger.units(kind)) if containing in unit.attack)
    return ledger.marker(unit)


def rewrite(ledger: Ledger, marker: Marker, data: bytes, **facts: object) -> None:
    """Replaces a unit's data and makes its marker agree: damage that no hash can see."""
    own = json.loads(ledger.storage.get(marker.unit.marker))
    ledger.storage._folder.joinpath(marker.unit.marker).unlink()  # type: ignore[union-attr]
    ledger.commit(marker.unit, data, marker.object.rpartition(".")[2], {**own["facts"], **facts})


def problems(ledger: Ledger) -> list[str]:
    return [f"{problem.where}: {problem.what}" for problem in audit(ledger).problems]


def test_a_sound_store_has_no_problems(ledger: Ledger) -> None:
    found = audit(ledger)
    assert found.problems == []
    assert found.images == 12
    assert found.objects == 2 + 4 + 2 + 4


def flip(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial")
    data = bytearray(ledger.storage.get(marker.object))
    data[700] ^= 1
    ledger.storage.put(marker.object, bytes(data))


def lose_object(ledger: Ledger) -> None:
    ledger.storage._folder.joinpath(first(ledger, "transfer").object).unlink()  # type: ignore[union-attr]


def lose_marker(ledger: Ledger) -> None:
    ledger.storage._folder.joinpath(first(ledger, "transfer").unit.marker).unlink()  # type: ignore[union-attr]


def junk_marker(ledger: Ledger) -> None:
    ledger.storage.put(first(ledger, "clean").unit.marker, b"{")


def stranger(ledger: Ledger) -> None:
    ledger.storage.put("markers/notes.txt", b"hello")


def outside(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial", "mi")
    tar = ledger.read(marker)
    images = parts.read(tar, name="x")
    pixels = images.pixels.clone()
    pixels[1, 0, 0, 0] = 255 if pixels[1, 0, 0, 0] < 128 else 0
    samples = list(shards.records(tar, name="x"))
    samples = [
        {**{k: v for k, v in each.items() if k != "__url__"}, "png": codec.encode(image)}
        for each, image in zip(samples, pixels, strict=True)
    ]
    rewrite(ledger, marker, shards.write(samples), pixels_sha256=codec.pixels_sha256(pixels))


def fewer(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial", "mi")
    samples = [
        {k: v for k, v in each.items() if k != "__url__"} for each in shards.records(ledger.read(marker), name="x")
    ]
    images = parts.read(shards.write(samples[:-1]), name="x")
    rewrite(ledger, marker, shards.write(samples[:-1]), n=3, pixels_sha256=codec.pixels_sha256(images.pixels))


def other_attack(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial", "mi")
    loose = {**marker.facts["attack"], "epsilon": "200/255"}
    rewrite(ledger, marker, ledger.read(marker), attack=loose)


def other_rows(ledger: Ledger) -> None:
    marker = first(ledger, "transfer")
    table = schema.read(ledger.read(marker), name="x")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    columns["pixels_sha256"] = ["0" * 64] * table.num_rows
    rewrite(ledger, marker, schema.write(schema.table(schema.TRANSFER, columns)))


def other_target(ledger: Ledger) -> None:
    marker = first(ledger, "transfer")
    table = schema.read(ledger.read(marker), name="x")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    rewrite(ledger, marker, schema.write(schema.table(schema.TRANSFER, {**columns, "target_id": "other"})))


def other_weights(ledger: Ledger) -> None:
    marker = first(ledger, "clean")
    rewrite(ledger, marker, ledger.read(marker), target={**marker.facts["target"], "model": "other"})


def other_bytes_scored(ledger: Ledger) -> None:
    marker = first(ledger, "clean")
    rewrite(ledger, marker, ledger.read(marker), scored_sha256="0" * 64)


def other_distance(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial", "mi")
    samples = [
        {**{k: v for k, v in each.items() if k != "__url__"}, "json": b'{"linf": 0.5}'}
        for each in shards.records(ledger.read(marker), name="x")
    ]
    rewrite(ledger, marker, shards.write(samples))


def forgetful(ledger: Ledger) -> None:
    marker = first(ledger, "original")
    own = ledger.storage.record(marker.unit.marker)
    ledger.storage.put_record(marker.unit.marker, {**own, "facts": {}}, once=False)


def elsewhere(ledger: Ledger) -> None:
    marker = first(ledger, "original")
    own = ledger.storage.record(marker.unit.marker)
    ledger.storage.put_record(marker.unit.marker, {**own, "object": "../../etc/passwd"}, once=False)


def no_parquet(ledger: Ledger) -> None:
    rewrite(ledger, first(ledger, "clean"), b"junk")


def other_plan(ledger: Ledger) -> None:
    ledger.storage.put(ledger.plans()[0], b"{}")


def miscounted(ledger: Ledger) -> None:
    marker = first(ledger, "original")
    rewrite(ledger, marker, ledger.read(marker), n_in=99)


def whole_shard(ledger: Ledger) -> None:
    plans = ledger.plan(ledger.plans()[0])
    ledger.record_plan({**plans, "shards": [*plans["shards"], "s-1"]})


def flipped_weights(ledger: Ledger) -> None:
    (weights,) = ledger.storage.list("weights")
    data = bytearray(ledger.storage.get(weights.key))
    data[-1] ^= 1
    ledger.storage.put(weights.key, bytes(data))


def cut_input(ledger: Ledger) -> None:
    ledger.storage.put("inputs/tiny-0/0.json", b"{")


def version_without_its_rows(ledger: Ledger) -> None:
    version = finalize(ledger)
    ledger.storage.delete([f"{version.key}/transfer/00000.parquet"])


def version_of_nothing(ledger: Ledger) -> None:
    ledger.storage.put("versions/x/manifest.json", b"[]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "damaged: its"),
        (lose_object, "no such object"),
        (lose_marker, "missing; run the same command again"),
        (junk_marker, "not a record"),
        (stranger, "not a marker; remove it"),
        (outside, "1 images lie outside epsilon = 8/255, the first 'image00001'"),
        (fewer, "keys or labels are not those of its original"),
        (other_attack, "not the one that its name stands for"),
        (other_rows, "pixels_sha256 does not match"),
        (other_target, "its column target_id is not"),
        (other_weights, "the target that its marker describes is not the one"),
        (other_bytes_scored, "it scores other bytes"),
        (other_distance, "says another distance"),
        (forgetful, "the marker does not say pixels_sha256"),
        (elsewhere, "its data cannot lie at '../../etc/passwd'"),
        (no_parquet, "not a Parquet file"),
        (other_plan, "not a record"),
        (miscounted, "99 images in"),
        (whole_shard, "no part of this shard is committed"),
        (flipped_weights, ".safetensors: damaged"),
        (cut_input, "not a record"),
        (version_without_its_rows, "transfer/00000.parquet: no such object"),
        (version_of_nothing, "not a manifest"),
    ],
)
def test_damage_is_found_and_named(ledger: Ledger, damage: Callable[[Ledger], None], message: str) -> None:
    damage(ledger)
    assert any(message in line for line in problems(ledger)), problems(ledger)


def test_networks_that_are_gone_are_named(ledger: Ledger) -> None:
    (weights,) = ledger.storage.list("weights")
    ledger.storage.delete([weights.key])
    (found,) = problems(ledger)
    assert found.endswith(f"{weights.key}: missing; a run puts it back from where it first came from")
    ledger.storage.delete([stored.key for stored in ledger.storage.list("models")])
    (found,) = problems(ledger)
    assert re.search(r"models: tiny-.*: no record of its weights; a run puts it back", found)


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
def test_what_readers_of_the_latest_version_take_is_that_versions(
    ledger: Ledger, damage: Callable[[Storage], None], message: str
) -> None:
    finalize(ledger)
    assert problems(ledger) == []
    damage(ledger.storage)
    assert any(re.search(message, found) for found in problems(ledger)), problems(ledger)
    finalize(ledger)
    assert problems(ledger) == []


def test_an_audit_goes_on_after_a_problem(ledger: Ledger) -> None:
    flip(ledger)
    stranger(ledger)
    miscounted(ledger)
    assert len(problems(ledger)) >= 3
    assert audit(ledger).objects == 12


def test_an_orphan_is_no_problem_and_no_data(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial")
    ledger.storage.put(marker.object.replace(".tar", "0.tar"), b"orphan")
    assert problems(ledger) == []


def test_pixels_are_hashed_not_believed(ledger: Ledger) -> None:
    marker = first(ledger, "adversarial", "mi")
    rewrite(ledger, marker, ledger.read(marker), pixels_sha256="0" * 64)
    assert any("hash to something else" in line for line in problems(ledger))


@pytest.fixture(scope="module")
def many_parts(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Ledger:
    """A sound store of 40 parts, one image each."""
    folder = tmp_path_factory.mktemp("many")
    write_shard(folder / "in" / "s-0.tar", [sample(index) for index in range(40)])
    ledger = Ledger(Storage(str(folder / "store"), create=True))
    planned = resolve(tiny_job(folder / "in", tiny_checkpoint, attacks=(attack("noise"),), part_size=1))
    ledger.record_plan(planned.describe())
    run_all(planned, ledger)
    return ledger


def test_a_sample_is_a_share_of_the_parts_whole_and_follows_the_seed(many_parts: Ledger) -> None:
    whole = audit(many_parts)
    assert (whole.parts, whole.of_parts, whole.objects, whole.images) == (40, 40, 160, 40)
    for fraction in (0.25, 0.5):
        found = audit(many_parts, fraction=fraction)
        assert (found.objects, found.images, found.of_parts) == (4 * found.parts, found.parts, 40)
        assert 0 < found.parts < 40
        assert audit(many_parts, fraction=fraction) == found, "the same seed takes the same parts"
    assert audit(many_parts, fraction=0.25).parts <= audit(many_parts, fraction=0.5).parts
    assert len({audit(many_parts, fraction=0.5, seed=seed).parts for seed in range(8)}) > 1
    nothing = audit(many_parts, fraction=0)
    assert (nothing.parts, nothing.objects, nothing.problems) == (0, 0, [])


def test_every_part_is_in_the_sample_of_some_seed_and_damage_in_it_is_found(many_parts: Ledger) -> None:
    unit = next(unit for unit in many_parts.units("adversarial") if unit.part.index == 17)
    marker = many_parts.marker(unit)
    sound = many_parts.storage.get(marker.object)
    many_parts.storage.put(marker.object, sound[:-1])
    try:
        found = [audit(many_parts, fraction=0.2, seed=seed) for seed in range(30)]
    finally:
        many_parts.storage.put(marker.object, sound)
    hits = [each for each in found if each.problems]
    assert 0 < len(hits) < 30
    assert all("damaged" in hit.problems[0].what for hit in hits)


def test_what_is_missing_is_found_outside_the_sample_too(ledger: Ledger) -> None:
    for damage in (lose_marker, stranger, whole_shard):
        damage(ledger)
    found = audit(ledger, fraction=0)
    assert found.parts == 0
    assert len(found.problems) == 3
