"""Generator stage: attacks, recorded predictions, and the item that is read in advance."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.data import codec, parts, shards
from pipeline.data.parts import Images
from pipeline.data.sample import ShardFile
from pipeline.errors import Interrupted, ShardError
from pipeline.ledger import Ledger
from pipeline.maintenance.verify import audit
from pipeline.models.classifier import Classifier
from pipeline.plan.job import Job
from pipeline.results import schema
from pipeline.stages import Generator, Scorer
from tests.samples import CLASSES, attack, list_pending, make_plan, sample, tiny_job, wait_until, write_shard
from tests.stages.runs import CPU, change_logits, digests, new_ledger, resolve_weights, run_stages


def test_stored_originals_are_attacked_without_the_shard(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = new_ledger(tmp_path / "store")
    run_stages(make_plan(job), ledger)

    def refuse(shard: ShardFile) -> None:
        raise AssertionError(f"{shard.url} was downloaded again")

    monkeypatch.setattr(shards, "download_shard", refuse)
    assert run_stages(make_plan(replace(job, attacks=(attack("i"),))), ledger) == (4, 4)


@pytest.mark.parametrize(
    ("name", "forward_passes"),
    # The gradients of two steps, and the adversarial images; the clean images only if no gradient was taken there.
    [("i", 2 + 1), ("gnp+mi", 4 + 1), ("pgd", 2 + 2), ("di+mi", 2 + 2), ("noise", 2)],
)
def test_the_source_predicts_clean_images_once(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, forward_passes: int
) -> None:
    # With this seed, `di` transforms one of the images in the first step.
    seeded = attack(name, seed=1)
    plan, ledger = make_plan(replace(job, attacks=(seeded,), targets=())), new_ledger(tmp_path / "store")
    resolve_weights(plan, ledger)
    generator, calls, real = Generator(plan, ledger, CPU), 0, Classifier.forward

    def counted(classifier: Classifier, images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return real(classifier, images)

    item = list_pending(plan, ledger)[1]  # three images, in one batch
    source = generator._load_source(item.source).network
    monkeypatch.setattr(Classifier, "forward", counted)
    generator.run(item)
    assert calls == forward_passes
    unit = next(iter(ledger.list_units("adversarial")))
    tar = ledger.read_data(ledger.read_marker(unit))
    records = [json.loads(files["json"]) for files in shards.read_records(tar, name="x")]
    original = next(iter(ledger.list_units("original")))
    images = parts.decode_tar(ledger.read_data(ledger.read_marker(original)), name="x")
    with torch.no_grad():
        expected = source(codec.to_float(images.pixels)).argmax(dim=1)
    assert [record["source_prediction_clean"] for record in records] == expected.tolist()


def test_the_next_item_is_read_during_the_attack(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(job)
    plain, ledger = new_ledger(tmp_path / "plain"), new_ledger(tmp_path / "store")
    run_stages(plan, plain)
    generator, downloaded, real = Generator(plan, ledger, CPU), list[str](), shards.download_shard
    resolve_weights(plan, ledger)

    def recorded(shard: ShardFile) -> Any:
        downloaded.append(shard.name)
        return real(shard)

    monkeypatch.setattr(shards, "download_shard", recorded)
    first, second = list_pending(plan, ledger)
    generator.announce_next(second, lambda: None)
    assert generator.run(first).parts == 6
    wait_until(lambda: len(list(ledger.list_units("original"))) == 4)
    assert generator.run(second).parts == 2
    assert sorted(downloaded) == ["s-0", "s-1"]
    assert Scorer(plan, ledger, CPU).run(first).parts + Scorer(plan, ledger, CPU).run(second).parts == 12
    assert digests(ledger) == digests(plain)


def test_an_error_of_the_next_item_is_raised_when_it_runs(job: Job, tmp_path: Path) -> None:
    damaged = tmp_path / "in" / "s-1.tar"
    damaged.write_bytes(damaged.read_bytes()[:-10240])
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    resolve_weights(plan, ledger)
    generator = Generator(plan, ledger, CPU)
    first, second = list_pending(plan, ledger)
    generator.announce_next(second, lambda: None)
    assert generator.run(first).parts == 6
    with pytest.raises(ShardError, match="s-1"):
        generator.run(second)


def test_the_next_item_is_not_read_if_another_run_has_it(job: Job, tmp_path: Path) -> None:
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    resolve_weights(plan, ledger)
    generator = Generator(plan, ledger, CPU)
    first, second = list_pending(plan, ledger)

    def refuse() -> None:
        raise Interrupted("another run works on it")

    generator.announce_next(second, refuse)
    assert generator.run(first).parts == 6
    assert {unit.part.shard for unit in ledger.list_units("original")} == {"s-0"}
    assert generator.run(second).parts == 2


def test_totals_of_a_prefetched_item_are_its_own(job: Job, tmp_path: Path) -> None:
    write_shard(tmp_path / "in" / "s-1.tar", [sample(100), {**sample(101), "jpg": b"no image"}])
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    resolve_weights(plan, ledger)
    generator = Generator(plan, ledger, CPU)
    first, second = list_pending(plan, ledger)
    generator.announce_next(second, lambda: None)
    first_totals, second_totals = generator.run(first), generator.run(second)
    assert (first_totals.quarantined, second_totals.quarantined) == (0, 1)
    assert {"get", "decode"} <= first_totals.seconds.keys() & second_totals.seconds.keys()


def test_an_adversarial_sample_records_its_attack(job: Job, tmp_path: Path) -> None:
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    run_stages(plan, ledger)
    unit = next(unit for unit in sorted(ledger.list_units("adversarial")) if "gnp" in unit.attack)
    marker = ledger.read_marker(unit)
    (first, *_) = shards.read_records(ledger.read_data(marker), name="x")
    record = json.loads(first["json"])
    assert record["key"] == first["__key__"] == "image00000"
    assert str(record["label"]).encode() == first["cls"]
    assert record["source"] == "tiny"
    assert record["attack"]["transforms"][0]["beta"] == 0.8
    assert record["epsilon"] == pytest.approx(8 / 255)
    assert 0 < record["linf"] <= 8 / 255
    assert {"seed", "l2", "source_prediction_clean", "source_prediction_adversarial"} <= record.keys()
    assert Image.open(io.BytesIO(first["png"])).size == (32, 32)
    assert {"batch_size", "device", "threads", "versions", "source"} <= marker.facts.keys()


def test_a_gradient_that_is_not_finite_is_an_error_and_stores_no_image(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_nothing(logits: Tensor, inputs: Tensor) -> Tensor:  # whose derivative is infinity times zero
        return logits + (inputs * 0).sum().sqrt()

    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    resolve_weights(plan, ledger)
    change_logits(monkeypatch, add_nothing)
    with pytest.raises(FloatingPointError, match=r"gnp\+mi: the gradient is not finite on image 'image00000'"):
        Generator(plan, ledger, CPU).run(list_pending(plan, ledger)[0])
    assert {unit.attack.split("-")[0] for unit in ledger.list_units("adversarial")} == {"noise"}


def test_a_sources_logits_that_are_not_finite_are_an_error(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ledger = make_plan(job), new_ledger(tmp_path / "store")
    resolve_weights(plan, ledger)
    # Not on the grey image with which models are tried as they are loaded.
    change_logits(monkeypatch, lambda logits, inputs: logits * (torch.inf if inputs.std() > 1e-3 else 1))
    with pytest.raises(FloatingPointError, match=r"source tiny-\w+: its logits are not finite on 4 of 4 images"):
        Generator(plan, ledger, CPU).run(list_pending(plan, ledger)[0])
    assert list(ledger.list_units("adversarial")) == []


def first_part(ledger: Ledger, attack_name: str) -> tuple[Images, list[Mapping[str, Any]]]:
    """The adversarial images of the first part by an attack, and its transfer rows."""
    unit = min(unit for unit in ledger.list_units("transfer") if unit.attack.startswith(attack_name))
    images = ledger.read_marker(replace(unit, target=""))
    table = schema.read_parquet(ledger.read_data(ledger.read_marker(unit)), name="rows")
    return parts.decode_tar(ledger.read_data(images), name="images"), table.to_pylist()


def test_a_targeted_attack_records_its_target_classes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples = [{**sample(index), "target": str((index + 3) % CLASSES).encode()} for index in range(4)]
    write_shard(tmp_path / "in" / "s.tar", samples)
    attacks = [
        attack("mi", name=name, target_class=target_class)
        for name, target_class in (("own", "shard"), ("drawn", "random"), ("least", "least-likely"), ("fixed", 7))
    ]
    plan = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=[*attacks, attack("mi")]))
    ledger = new_ledger(tmp_path / "store")
    run_stages(plan, ledger)
    parts_by_attack = {name: first_part(ledger, name) for name in ("own", "drawn", "least", "fixed", "mi")}
    assert parts_by_attack["own"][0].target_classes.tolist() == [3, 4, 5, 6]
    assert parts_by_attack["fixed"][0].target_classes.tolist() == [7] * 4
    assert parts_by_attack["mi"][0].target_classes.tolist() == [-1] * 4
    for images, rows in parts_by_attack.values():
        expected = [None if index < 0 else index for index in images.target_classes.tolist()]
        assert [row["target_class"] for row in rows] == expected
    drawn, labels = parts_by_attack["drawn"][0].target_classes, parts_by_attack["drawn"][0].labels
    assert not (drawn == labels).any()
    assert audit(ledger).problems == []


def test_a_sample_without_the_target_class_that_an_attack_needs_is_named(job: Job, tmp_path: Path) -> None:
    plan = make_plan(replace(job, attacks=(attack("noise"), attack("mi", target_class="shard"))))
    ledger = new_ledger(tmp_path / "store")
    with pytest.raises(
        ShardError, match=r"sample 'image00000' has no target class, which mi wants; pack the shard again, .* image0"
    ):
        Generator(plan, ledger, CPU).run(list_pending(plan, ledger)[0])
    assert {unit.attack.split("-")[0] for unit in ledger.list_units("adversarial")} == {"noise"}, (
        "the other attack is committed"
    )
