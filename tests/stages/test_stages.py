import io
import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.analysis.report import summarise
from pipeline.attack.ensemble import Fuse
from pipeline.data import codec, parts, shards
from pipeline.data.parts import Images
from pipeline.data.sample import Part, ShardFile
from pipeline.errors import Interrupted, ShardError, WeightsError
from pipeline.ledger import Ledger, Unit
from pipeline.ledger.progress import Made
from pipeline.maintenance.verify import audit
from pipeline.models import registry
from pipeline.models.classifier import Classifier
from pipeline.models.defenses import RandomisedSmoothing, RandomResizePad
from pipeline.models.load import EnsembleSpec
from pipeline.plan import outline
from pipeline.plan.resolve import Job, Plan
from pipeline.results import schema
from pipeline.stages import Generator, Scorer
from pipeline.storage import Storage, sha256
from tests.samples import CLASSES, attack, jpeg, pending, resolve, sample, tiny_job, until, write_shard

CPU = torch.device("cpu")


def ledger_in(folder: Path) -> Ledger:
    return Ledger(Storage(str(folder), create=True))


def run_all(planned: Plan, ledger: Ledger, workers: int = 1) -> tuple[int, int]:
    """Runs both stages; returns how many adversarial parts and result files they made."""
    for model in (*(member for source in planned.sources for member in source.members), *planned.targets):
        registry.resolve(model.spec, ledger.storage, classes=planned.job.data.classes)
    generator, scorer = Generator(planned, ledger, CPU), Scorer(planned, ledger, CPU)
    items = pending(planned, ledger, workers=workers)
    return sum(generator.run(item).parts for item in items), sum(scorer.run(item).parts for item in items)


def digests(ledger: Ledger) -> dict[Unit, str]:
    return {
        marker.unit: marker.sha256
        for kind in ("original", "adversarial", "clean", "transfer")
        for marker in ledger.markers(ledger.units(kind))
    }


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path) -> Job:
    write_shard(tmp_path / "in" / "s-0.tar", [sample(index) for index in range(10)])
    write_shard(tmp_path / "in" / "s-1.tar", [sample(100 + index) for index in range(3)])
    return tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("noise"), attack("gnp+mi")))


def test_an_undisturbed_run_makes_every_unit_once(job: Job, tmp_path: Path) -> None:
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    assert run_all(planned, ledger) == (8, 12)
    assert pending(planned, ledger) == []
    assert run_all(planned, ledger) == (0, 0)


def test_a_rerun_elsewhere_gives_the_same_bytes_whatever_the_workers(job: Job, tmp_path: Path) -> None:
    planned = resolve(job)
    one, other = ledger_in(tmp_path / "one"), ledger_in(tmp_path / "other")
    run_all(planned, one)
    run_all(planned, other, workers=6)
    assert digests(one) == digests(other)


def test_a_cut_off_run_goes_on_to_the_same_result(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = resolve(job)
    whole, cut = ledger_in(tmp_path / "whole"), ledger_in(tmp_path / "cut")
    run_all(planned, whole)
    real, left = Ledger.commit, 0

    def commit_some(ledger: Ledger, *arguments: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return real(ledger, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "commit", commit_some)
    for _ in range(40):
        left = 3
        try:
            run_all(planned, cut)
        except KeyboardInterrupt:
            continue
        break
    monkeypatch.undo()
    assert pending(planned, cut) == []
    assert digests(cut) == digests(whole)
    assert len(list(cut.storage.list("shards"))) == len(list(whole.storage.list("shards")))


def test_a_new_attack_or_target_computes_only_what_is_new(job: Job, tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path / "store")
    run_all(resolve(job), ledger)
    wider = replace(job, attacks=(*job.attacks, attack("i")))
    assert run_all(resolve(wider), ledger) == (4, 4)
    second = replace(job.targets[0], name="tiny-again", policy="direct", mean=(0.5, 0.5, 0.5))
    assert run_all(resolve(replace(wider, targets=(*job.targets, second))), ledger) == (0, 4 + 12)


def test_stored_originals_are_attacked_without_the_shard(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_in(tmp_path / "store")
    run_all(resolve(job), ledger)

    def refuse(shard: ShardFile) -> None:
        raise AssertionError(f"{shard.url} was fetched again")

    monkeypatch.setattr(shards, "spool", refuse)
    assert run_all(resolve(replace(job, attacks=(attack("i"),))), ledger) == (4, 4)


@pytest.mark.parametrize(
    ("name", "asked"),
    # Two gradients, and what it says of the adversarial images; of the clean ones only where nobody has asked before.
    [("i", 2 + 1), ("gnp+mi", 4 + 1), ("pgd", 2 + 2), ("di+mi", 2 + 2), ("noise", 2)],
)
def test_the_source_is_not_asked_twice_about_clean_images(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: int
) -> None:
    planned, ledger = resolve(replace(job, attacks=(attack(name),), targets=())), ledger_in(tmp_path / "store")
    registry.resolve(planned.sources[0].spec, ledger.storage, classes=CLASSES)  # type: ignore[arg-type]
    generator, calls, real = Generator(planned, ledger, CPU), 0, Classifier.forward

    def counted(classifier: Classifier, images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return real(classifier, images)

    item = pending(planned, ledger)[1]  # of three images, which are one batch
    source = generator._source(item.source)
    monkeypatch.setattr(Classifier, "forward", counted)
    generator.run(item)
    assert calls == asked
    unit = next(iter(ledger.units("adversarial")))
    said = [json.loads(each["json"]) for each in shards.records(ledger.read(ledger.marker(unit)), name="x")]
    original = next(iter(ledger.units("original")))
    images = parts.read(ledger.read(ledger.marker(original)), name="x")
    with torch.no_grad():
        expected = source(codec.to_float(images.pixels)).argmax(dim=1)
    assert [each["source_prediction_clean"] for each in said] == expected.tolist()


def test_the_next_item_is_read_while_this_one_is_attacked(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = resolve(job)
    plain, told = ledger_in(tmp_path / "plain"), ledger_in(tmp_path / "told")
    run_all(planned, plain)
    generator, spooled, real = Generator(planned, told, CPU), list[str](), shards.spool
    registry.resolve(planned.sources[0].spec, told.storage, classes=CLASSES)  # type: ignore[arg-type]

    def noted(shard: ShardFile) -> Any:
        spooled.append(shard.name)
        return real(shard)

    monkeypatch.setattr(shards, "spool", noted)
    first, second = pending(planned, told)
    generator.prepare(second, lambda: None)
    assert generator.run(first).parts == 6
    until(lambda: len(list(told.units("original"))) == 4)
    assert generator.run(second).parts == 2
    assert sorted(spooled) == ["s-0", "s-1"]
    assert Scorer(planned, told, CPU).run(first).parts + Scorer(planned, told, CPU).run(second).parts == 12
    assert digests(told) == digests(plain)


def test_what_is_wrong_with_the_next_item_is_said_when_it_is_run(job: Job, tmp_path: Path) -> None:
    damaged = tmp_path / "in" / "s-1.tar"
    damaged.write_bytes(damaged.read_bytes()[:-10240])
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    registry.resolve(planned.sources[0].spec, ledger.storage, classes=CLASSES)  # type: ignore[arg-type]
    generator = Generator(planned, ledger, CPU)
    first, second = pending(planned, ledger)
    generator.prepare(second, lambda: None)
    assert generator.run(first).parts == 6
    with pytest.raises(ShardError, match="s-1"):
        generator.run(second)


def test_the_next_item_is_not_read_where_it_is_somebody_elses(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    registry.resolve(planned.sources[0].spec, ledger.storage, classes=CLASSES)  # type: ignore[arg-type]
    generator = Generator(planned, ledger, CPU)
    first, second = pending(planned, ledger)

    def refuse() -> None:
        raise Interrupted("another run is at it")

    generator.prepare(second, refuse)
    assert generator.run(first).parts == 6
    assert {unit.part.shard for unit in ledger.units("original")} == {"s-0"}
    assert generator.run(second).parts == 2


def test_an_adversarial_sample_says_what_was_done(job: Job, tmp_path: Path) -> None:
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    run_all(planned, ledger)
    unit = next(unit for unit in sorted(ledger.units("adversarial")) if "gnp" in unit.attack)
    marker = ledger.marker(unit)
    (first, *_) = shards.records(ledger.read(marker), name="x")
    said = json.loads(first["json"])
    assert said["key"] == first["__key__"] == "image00000"
    assert str(said["label"]).encode() == first["cls"]
    assert said["source"] == "tiny"
    assert said["attack"]["transforms"][0]["beta"] == 0.8
    assert said["epsilon"] == pytest.approx(8 / 255)
    assert 0 < said["linf"] <= 8 / 255
    assert {"seed", "l2", "source_prediction_clean", "source_prediction_adversarial"} <= said.keys()
    assert Image.open(io.BytesIO(first["png"])).size == (32, 32)
    assert {"batch_size", "device", "threads", "versions", "source"} <= marker.facts.keys()


def test_a_batch_size_that_is_found_is_used_and_recorded(job: Job, tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path / "store")
    wanting = replace(job, batch_size="auto", attacks=(*job.attacks, attack("i", target_class="least-likely")))
    run_all(resolve(wanting), ledger)
    plain = ledger_in(tmp_path / "plain")
    run_all(resolve(replace(wanting, batch_size=4)), plain)
    made = {kind: sorted(ledger.units(kind)) for kind in ("original", "adversarial", "clean", "transfer")}
    assert made == {kind: sorted(plain.units(kind)) for kind in made}
    for kind, units in made.items():
        sizes = {ledger.marker(unit).facts["batch_size"] for unit in units}
        assert sizes <= ({None} if kind == "original" else {1, 2, 4})


def test_bad_samples_are_quarantined_and_the_counts_add_up(tmp_path: Path, tiny_checkpoint: Path) -> None:
    samples = [
        sample(0),
        {"__key__": "cut", "jpg": jpeg(1)[:300], "cls": b"1"},
        {"__key__": "unlabelled", "jpg": jpeg(2)},
        {"__key__": "small", "jpg": jpeg(3, side=8), "cls": b"1"},
        sample(4),
    ]
    write_shard(tmp_path / "in" / "s.tar", samples)
    job = tiny_job(tmp_path / "in", tiny_checkpoint, part_size=8)
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    run_all(planned, ledger)
    (marker,) = ledger.markers(ledger.units("original"))
    facts = marker.facts
    assert (facts["n_in"], facts["n_ok"], facts["n_quarantined"]) == (5, 3, 2)
    assert {row["key"] for row in facts["quarantined"]} == {"cut", "unlabelled"}
    (result,) = ledger.markers(ledger.units("transfer"))
    assert schema.read(ledger.read(result), name="x").column("key").to_pylist() == [
        "image00000",
        "small",
        "image00004",
    ]


def test_a_part_of_nothing_but_bad_samples_is_done_and_empty(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [{"__key__": "bad", "jpg": b"x", "cls": b"1"}])
    planned, ledger = resolve(tiny_job(tmp_path / "in", tiny_checkpoint)), ledger_in(tmp_path / "store")
    assert run_all(planned, ledger) == (1, 2)
    assert pending(planned, ledger) == []
    (marker,) = ledger.markers(ledger.units("transfer"))
    assert schema.read(ledger.read(marker), name="x").num_rows == 0


def test_an_empty_shard_and_a_truncated_one_are_errors(job: Job, tmp_path: Path) -> None:
    (tmp_path / "in" / "s-0.tar").write_bytes(shards.write([]))
    damaged = tmp_path / "in" / "s-1.tar"
    damaged.write_bytes(damaged.read_bytes()[:-10240])
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    empty, truncated = pending(planned, ledger)
    generator = Generator(planned, ledger, CPU)
    with pytest.raises(ShardError, match="holds no samples"):
        generator.run(empty)
    with pytest.raises(ShardError, match="s-1"):
        generator.run(truncated)
    assert list(ledger.units("original")) == []


def test_a_shard_that_changes_halfway_is_an_error(job: Job, tmp_path: Path) -> None:
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    first, second, *_ = pending(planned, ledger, workers=4)
    generator = Generator(planned, ledger, CPU)
    generator.run(first)
    write_shard(tmp_path / "in" / "s-0.tar", [sample(50 + index) for index in range(10)])
    with pytest.raises(ShardError, match="changed since"):
        generator.run(second)


def test_an_original_made_by_another_decoder_is_what_is_attacked(job: Job, tmp_path: Path) -> None:
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    (_, item) = pending(planned, ledger)
    generator = Generator(planned, ledger, CPU)
    nothing = ledger.committed(outline.all_scopes(planned.outline))
    (made,) = [make() for _, make in generator._originals(item, nothing, 1)]
    other = ledger_in(tmp_path / "other")
    theirs = made.pixels.clone()
    theirs[:, :, 0, 0] ^= 1
    tar = shards.write(
        {"__key__": key, "png": codec.encode(image), "cls": str(label).encode()}
        for key, label, image in zip(made.keys, made.labels.tolist(), theirs, strict=True)
    )
    facts = {
        "pixels_sha256": codec.pixels_sha256(theirs),
        "shard": {"sha256": sha256((tmp_path / "in" / "s-1.tar").read_bytes())},
    }
    other.commit(Unit(planned.dataset, Part("s-1", 0, 1)), tar, "tar", facts)
    (attacked,) = [make() for _, make in Generator(planned, other, CPU)._originals(item, nothing, 1)]
    assert torch.equal(attacked.pixels, theirs)


def test_a_gradient_that_is_not_finite_is_an_error_and_no_image(
    job: Job, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    state = load_file(tiny_checkpoint)
    state["fc.bias"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    source = replace(job.targets[0], checkpoint=str(tmp_path / "nan.safetensors"))
    planned, ledger = resolve(replace(job, sources=(source,))), ledger_in(tmp_path / "store")
    with pytest.raises(FloatingPointError, match=r"gnp\+mi: the gradient is not finite on image 'image00000'"):
        Generator(planned, ledger, CPU).run(pending(planned, ledger)[0])
    assert {unit.attack.split("-")[0] for unit in ledger.units("adversarial")} == {"noise"}


def test_weights_that_are_not_those_that_were_resolved_are_refused(job: Job, tmp_path: Path) -> None:
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    (target,) = planned.targets
    moved = replace(planned, targets=(replace(target, digest="0" * 64),))
    with pytest.raises(WeightsError, match="not to 000000000000"):
        Scorer(moved, ledger, CPU)


def test_a_fraction_of_the_images_is_taken(job: Job, tmp_path: Path) -> None:
    half = replace(job, data=replace(job.data, fraction=0.5))
    planned, ledger = resolve(half), ledger_in(tmp_path / "store")
    run_all(planned, ledger)
    facts = [marker.facts for marker in ledger.markers(ledger.units("original"))]
    assert sum(each["n_in"] + each["n_not_chosen"] for each in facts) == 13
    assert 0 < sum(each["n_in"] for each in facts) < 13


def test_a_stored_part_that_is_not_one_is_an_error() -> None:
    with pytest.raises(ShardError, match="sample a: no label"):
        parts.read(shards.write([{"__key__": "a", "png": b"x"}]), name="x")
    with pytest.raises(ShardError, match="undecodable"):
        parts.read(shards.write([{"__key__": "a", "png": b"x", "cls": b"1"}]), name="x")


def stored(ledger: Ledger, attack_name: str) -> tuple[Images, list[Mapping[str, Any]]]:
    """The adversarial images of the first part by an attack, and its transfer rows."""
    unit = min(unit for unit in ledger.units("transfer") if unit.attack.startswith(attack_name))
    images = ledger.marker(replace(unit, target=""))
    table = schema.read(ledger.read(ledger.marker(unit)), name="rows")
    return parts.read(ledger.read(images), name="images"), table.to_pylist()


def test_a_targeted_attack_records_what_it_wanted(tmp_path: Path, tiny_checkpoint: Path) -> None:
    wanting = [{**sample(index), "target": str((index + 3) % CLASSES).encode()} for index in range(4)]
    write_shard(tmp_path / "in" / "s.tar", wanting)
    attacks = [
        attack("mi", name=name, target_class=wanted)
        for name, wanted in (("own", "shard"), ("drawn", "random"), ("least", "least-likely"), ("fixed", 7))
    ]
    planned = resolve(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=[*attacks, attack("mi")]))
    ledger = ledger_in(tmp_path / "store")
    run_all(planned, ledger)
    found = {name: stored(ledger, name) for name in ("own", "drawn", "least", "fixed", "mi")}
    assert found["own"][0].target_classes.tolist() == [3, 4, 5, 6]
    assert found["fixed"][0].target_classes.tolist() == [7] * 4
    assert found["mi"][0].target_classes.tolist() == [-1] * 4
    for images, rows in found.values():
        expected = [None if wanted < 0 else wanted for wanted in images.target_classes.tolist()]
        assert [row["target_class"] for row in rows] == expected
    drawn, labels = found["drawn"][0].target_classes, found["drawn"][0].labels
    assert not (drawn == labels).any()
    assert audit(ledger).problems == []


def test_a_sample_that_does_not_say_what_is_wanted_of_it_is_named(job: Job, tmp_path: Path) -> None:
    planned = resolve(replace(job, attacks=(attack("noise"), attack("mi", target_class="shard"))))
    ledger = ledger_in(tmp_path / "store")
    with pytest.raises(
        ShardError, match=r"sample 'image00000' has no target class, which mi wants; pack the shard again, .* image0"
    ):
        Generator(planned, ledger, CPU).run(pending(planned, ledger)[0])
    assert {unit.attack.split("-")[0] for unit in ledger.units("adversarial")} == {"noise"}, "the rest is done"


def test_an_ensemble_is_a_source_like_any_other(job: Job, tmp_path: Path, tiny_checkpoint: Path) -> None:
    state = {name: value.flip(0) for name, value in load_file(tiny_checkpoint).items()}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "other.safetensors")
    one = job.targets[0]
    other = replace(one, name="other", checkpoint=str(tmp_path / "other.safetensors"))
    ensembles = tuple(EnsembleSpec((one, other), fuse, name=fuse) for fuse in get_args(Fuse))
    planned, ledger = resolve(replace(job, sources=(one, *ensembles))), ledger_in(tmp_path / "store")
    run_all(planned, ledger)
    assert pending(planned, ledger) == []
    made = {
        unit.source.split("-")[0]: ledger.marker(unit)
        for unit in ledger.units("adversarial")
        if unit.part.index == 0 and not unit.attack.startswith("noise")  # which is the same from every source
    }
    assert made.keys() == {"tiny", "logits", "probabilities", "losses"}
    assert len({source.id for source in planned.sources}) == 4
    digest = {name: marker.fact("pixels_sha256") for name, marker in made.items()}
    assert digest["logits"] != digest["tiny"]
    assert audit(ledger).problems == []


def test_a_target_behind_defenses_is_scored_beside_the_plain_one_and_the_same_again(job: Job, tmp_path: Path) -> None:
    plain = job.targets[0]
    behind = [replace(plain, name=name, defense=name) for name in ("rp", "bits+jpeg", "smoothing")]
    behind[0] = replace(behind[0], rp=RandomResizePad(draws=2))
    behind[2] = replace(behind[2], smoothing=RandomisedSmoothing(sigma=1.0, draws=11))
    planned = resolve(replace(job, targets=(plain, *behind)))
    one, other = ledger_in(tmp_path / "one"), ledger_in(tmp_path / "other")
    run_all(planned, one)
    run_all(planned, other, workers=6)
    assert digests(one) == digests(other)
    assert audit(one).problems == []
    rows = {
        marker.unit.target.split("-")[0]: schema.read(one.read(marker), name="x").to_pylist()
        for marker in one.markers(unit for unit in one.units("clean") if unit.part.shard == "s-1")
    }
    assert {name: {row["defense"] for row in found} for name, found in rows.items()} == {
        "tiny": {""},
        "rp": {"rp"},
        "bits": {"bits+jpeg"},
        "smoothing": {"smoothing"},
    }
    assert any(row["abstained"] for row in rows["smoothing"]), "eleven votes settle little"
    assert not any(row["abstained"] for name in ("tiny", "rp", "bits") for row in rows[name])
    marker = next(one.markers(unit for unit in one.units("clean") if unit.target.startswith("bits")))
    assert [each["kind"] for each in marker.fact("target")["defenses"]] == ["BitDepth", "Jpeg"]


def test_an_image_in_an_l2_ball_is_inside_as_stored(job: Job, tmp_path: Path) -> None:
    attacks = (attack("noise", norm="l2", epsilon=Fraction(1)), attack("mi", norm="l2", epsilon=Fraction(1)))
    planned, ledger = resolve(replace(job, attacks=attacks)), ledger_in(tmp_path / "store")
    run_all(planned, ledger)
    assert audit(ledger).problems == []
    record = next(shards.records(ledger.read(next(ledger.markers(ledger.units("adversarial")))), name="x"))
    assert 0.9 < json.loads(record["json"])["l2"] <= 1


def test_what_stages_count_is_what_the_report_says(job: Job, tmp_path: Path) -> None:
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    for model in (*planned.sources[0].members, *planned.targets):
        registry.resolve(model.spec, ledger.storage, classes=CLASSES)
    generator, scorer = Generator(planned, ledger, CPU), Scorer(planned, ledger, CPU)
    items = pending(planned, ledger)
    attacked = sum((generator.run(item) for item in items), Made())
    scored = sum((scorer.run(item) for item in items), Made())
    assert (attacked.images, scored.images) == (26, 39)
    assert set(attacked.seconds) == {"get", "decode", "gradient", "answer", "encode", "put"}
    assert set(scored.seconds) == {"get", "decode", "answer", "encode", "put"}
    assert min(attacked.seconds.values()) > 0
    reported = {(line.source, line.attack, line.target): line.rates["target"] for line in summarise(ledger).success}
    assert {cell: (scored.fooled[cell], n) for cell, n in scored.counted.items()} == {
        cell: (rate.count, rate.n) for cell, rate in reported.items()
    }


def test_success_is_counted_also_where_an_earlier_run_scored_the_clean_images(job: Job, tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path / "store")
    run_all(resolve(job), ledger)
    planned = resolve(replace(job, attacks=(*job.attacks, attack("i"))))
    generator, scorer = Generator(planned, ledger, CPU), Scorer(planned, ledger, CPU)
    items = pending(planned, ledger)
    for item in items:
        generator.run(item)
    scored = sum((scorer.run(item) for item in items), Made())
    (line,) = (line for line in summarise(ledger).success if line.attack == "i")
    cell = (line.source, "i", line.target)
    assert (scored.fooled, scored.counted) == ({cell: line.rates["target"].count}, {cell: line.rates["target"].n})


def test_damaged_clean_results_of_an_earlier_run_leave_only_the_count_out(job: Job, tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path / "store")
    run_all(resolve(job), ledger)
    for marker in ledger.markers(ledger.units("clean")):
        ledger.storage.put(marker.object, b"")
    planned = resolve(replace(job, attacks=(*job.attacks, attack("i"))))
    assert run_all(planned, ledger) == (4, 4)


def test_what_is_counted_of_an_item_that_is_read_ahead_is_its_own(job: Job, tmp_path: Path) -> None:
    write_shard(tmp_path / "in" / "s-1.tar", [sample(100), {**sample(101), "jpg": b"no image"}])
    planned, ledger = resolve(job), ledger_in(tmp_path / "store")
    for model in planned.sources[0].members:
        registry.resolve(model.spec, ledger.storage, classes=CLASSES)
    generator = Generator(planned, ledger, CPU)
    first, second = pending(planned, ledger)
    generator.prepare(second, lambda: None)
    before, after = generator.run(first), generator.run(second)
    assert (before.quarantined, after.quarantined) == (0, 1)
    assert {"get", "decode"} <= before.seconds.keys() & after.seconds.keys()
