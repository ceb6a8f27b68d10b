from dataclasses import asdict
from pathlib import Path

import pytest
from torch import Tensor

from pipeline.data import codec
from pipeline.data.codec import Preparation
from pipeline.data.sample import Part
from pipeline.errors import IntegrityError, SampleError
from pipeline.ledger import KINDS, Ledger, leases
from pipeline.maintenance import garbage
from pipeline.maintenance.finalize import finalize
from pipeline.plan import quarantine
from pipeline.storage import Storage
from tests.samples import jpeg, resolve, sample, tiny_job, write_shard
from tests.stages.test_stages import digests, run_all


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path / "store"), create=True))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A shard of three parts; an older decoder cannot read one image of the second."""
    return write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(12)])


def forget_how_to_decode(image: bytes, patch: pytest.MonkeyPatch) -> None:
    real = codec.decode

    def decode(data: bytes, preparation: Preparation | None = None) -> Tensor:
        if data == image:
            raise SampleError("undecodable image: a flavour of JPEG that this release does not know")
        return real(data, preparation)

    patch.setattr(codec, "decode", decode)


def test_an_image_that_a_later_decoder_can_read_is_used_and_the_rest_stays(
    whole: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    planned = resolve(tiny_job(tmp_path / "in", tiny_checkpoint))
    with pytest.MonkeyPatch.context() as patch:
        forget_how_to_decode(jpeg(5), patch)
        run_all(planned, ledger)
        before = digests(ledger)
        assert [row.key for row in quarantine.listed(ledger)] == ["image00005"]
        assert list(quarantine.reconsider(planned, ledger, other=lambda: None)) == [], "it is as unreadable as it was"
        assert digests(ledger) == before
    assert list(quarantine.reconsider(planned, ledger, other=lambda: None)) == [
        (Part("s", 1, 3), "quarantined images can be used now")
    ]
    assert {unit.part.index for kind in KINDS for unit in ledger.units(kind)} == {0, 2}
    assert run_all(planned, ledger) == (1, 2)
    assert list(quarantine.listed(ledger)) == []
    after = digests(ledger)
    assert {unit: digest for unit, digest in after.items() if unit.part.index != 1} == {
        unit: digest for unit, digest in before.items() if unit.part.index != 1
    }
    fresh = Ledger(Storage(str(tmp_path / "fresh"), create=True))
    run_all(planned, fresh)
    assert digests(fresh) == after, "as if it had been readable from the start"


def test_nothing_is_revoked_for_a_shard_of_other_content(
    whole: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    planned = resolve(tiny_job(tmp_path / "in", tiny_checkpoint))
    with pytest.MonkeyPatch.context() as patch:
        forget_how_to_decode(jpeg(5), patch)
        run_all(planned, ledger)
    write_shard(whole, [sample(100 + index) for index in range(12)])
    assert list(quarantine.reconsider(planned, ledger, other=lambda: None)) == []


def test_a_revocation_that_is_cut_off_leaves_what_is_whole(
    whole: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = resolve(tiny_job(tmp_path / "in", tiny_checkpoint))
    run_all(planned, ledger)
    real, calls = Storage.delete, 0

    def delete(storage: Storage, keys: list[str]) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        real(storage, keys)

    monkeypatch.setattr(Storage, "delete", delete)
    with pytest.raises(KeyboardInterrupt):
        ledger.revoke(planned.dataset, {Part("s", 1, 3)})
    standing = {unit.kind for kind in KINDS for unit in ledger.units(kind) if unit.part.index == 1}
    assert standing == {"original", "adversarial"}
    monkeypatch.undo()
    assert run_all(planned, ledger) == (0, 2)


def test_what_a_finished_version_names_outlives_its_revocation(
    whole: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    planned = resolve(tiny_job(tmp_path / "in", tiny_checkpoint))
    ledger.record_plan(planned.describe())
    run_all(planned, ledger)
    finalize(ledger)
    ledger.revoke(planned.dataset, {Part("s", 1, 3)})
    orphan = "shards/original/x-0/s/00000-of-00001-0123456789abcdef.tar"
    ledger.storage.put(orphan, b"")
    assert [item.key for item in garbage.find(ledger, age_s=0)] == [orphan]


def test_a_key_that_stands_twice_makes_no_part_anew(ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0), sample(1), sample(0)])
    planned = resolve(tiny_job(tmp_path / "in", tiny_checkpoint))
    run_all(planned, ledger)
    assert [row.key for row in quarantine.listed(ledger)] == ["image00000"]
    assert list(quarantine.reconsider(planned, ledger, other=lambda: None)) == [], "the first of them was used before"


def test_nothing_is_revoked_while_another_run_is_at_work(
    whole: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    planned = resolve(tiny_job(tmp_path / "in", tiny_checkpoint))
    with pytest.MonkeyPatch.context() as patch:
        forget_how_to_decode(jpeg(5), patch)
        run_all(planned, ledger)
    before = digests(ledger)
    with leases.alone(ledger.storage) as other:
        leases.beat(ledger.storage, "begun-since", plan="p", state="running", counts={})
        assert list(quarantine.reconsider(planned, ledger, other=other)) == []
    assert digests(ledger) == before


def test_what_was_made_of_an_original_that_is_another_now_is_refused_and_mended(
    whole: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    planned = resolve(tiny_job(tmp_path / "in", tiny_checkpoint))
    with pytest.MonkeyPatch.context() as patch:
        forget_how_to_decode(jpeg(5), patch)
        run_all(planned, ledger)
    late = [
        marker for kind in KINDS[1:] for marker in ledger.markers(ledger.units(kind)) if marker.unit.part.index == 1
    ]
    list(quarantine.reconsider(planned, ledger, other=lambda: None))
    run_all(planned, ledger)
    sound = digests(ledger)
    # As if a writer, whose lease had run out while it slept, committed what it had made before.
    for marker in late:
        ledger.storage.put_record(marker.unit.marker, asdict(marker), once=False)
    ledger.record_plan(planned.describe())
    with pytest.raises(IntegrityError, match="made of another original part than stands; run generate --retry-failed"):
        finalize(ledger)
    assert list(quarantine.reconsider(planned, ledger, other=lambda: None)) == [
        (Part("s", 1, 3), "it was attacked before its original was made again")
    ]
    run_all(planned, ledger)
    assert digests(ledger) == sound
    assert finalize(ledger).missing == 0
