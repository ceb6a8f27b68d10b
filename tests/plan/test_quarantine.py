from dataclasses import asdict
from pathlib import Path

import pytest
from torch import Tensor

from pipeline.data import codec
from pipeline.data.codec import Preparation
from pipeline.data.sample import Part
from pipeline.errors import IntegrityError, SampleError
from pipeline.ledger import UNIT_KINDS, Ledger, leases
from pipeline.ledger.quarantined import list_quarantined
from pipeline.maintenance import garbage
from pipeline.maintenance.finalize import finalize
from pipeline.plan import quarantine
from pipeline.plan.resolve import Plan
from pipeline.storage import Storage
from tests.samples import jpeg, make_plan, sample, tiny_job, write_shard
from tests.stages.runs import digests, run_stages


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path / "store"), create=True))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of three parts; an older decoder cannot read one image of the second."""
    return write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(12)])


def refuse_to_decode(image: bytes, patch: pytest.MonkeyPatch) -> None:
    real = codec.decode

    def decode(data: bytes, preparation: Preparation | None = None) -> Tensor:
        if data == image:
            raise SampleError("undecodable image: a flavour of JPEG that this release does not know")
        return real(data, preparation)

    patch.setattr(codec, "decode", decode)


def run_with_older_decoder(planned: Plan, ledger: Ledger) -> None:
    """Runs both stages with a decoder that cannot read the image of the shard's second part."""
    with pytest.MonkeyPatch.context() as patch:
        refuse_to_decode(jpeg(5), patch)
        run_stages(planned, ledger)


def test_a_part_is_made_again_when_a_newer_decoder_reads_its_image_and_the_rest_stays(
    shard: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    with pytest.MonkeyPatch.context() as patch:
        refuse_to_decode(jpeg(5), patch)
        run_stages(planned, ledger)
        before = digests(ledger)
        assert [row.key for row in list_quarantined(ledger)] == ["image00005"]
        assert list(quarantine.revoke_usable_parts(planned, ledger, other_run=lambda: None)) == [], (
            "it is as unreadable as it was"
        )
        assert digests(ledger) == before
    assert list(quarantine.revoke_usable_parts(planned, ledger, other_run=lambda: None)) == [
        (Part("s", 1, 3), "quarantined images can be used now")
    ]
    assert {unit.part.index for kind in UNIT_KINDS for unit in ledger.list_units(kind)} == {0, 2}
    assert run_stages(planned, ledger) == (1, 2)
    assert list(list_quarantined(ledger)) == []
    after = digests(ledger)
    assert {unit: digest for unit, digest in after.items() if unit.part.index != 1} == {
        unit: digest for unit, digest in before.items() if unit.part.index != 1
    }
    fresh = Ledger(Storage(str(tmp_path / "fresh"), create=True))
    run_stages(planned, fresh)
    assert digests(fresh) == after, "as if it had been readable from the start"


def test_nothing_is_revoked_for_a_changed_shard(
    shard: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    run_with_older_decoder(planned, ledger)
    write_shard(shard, [sample(100 + index) for index in range(12)])
    assert list(quarantine.revoke_usable_parts(planned, ledger, other_run=lambda: None)) == []


def test_an_interrupted_revocation_leaves_a_consistent_store(
    shard: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    run_stages(planned, ledger)
    real, calls = Storage.delete, 0

    def delete(storage: Storage, keys: list[str]) -> None:
        nonlocal calls
        calls += any(key.startswith("markers/") for key in keys)
        if calls == 3:
            raise KeyboardInterrupt
        real(storage, keys)

    monkeypatch.setattr(Storage, "delete", delete)
    with pytest.raises(KeyboardInterrupt):
        ledger.revoke(planned.dataset, {Part("s", 1, 3)})
    standing = {unit.kind for kind in UNIT_KINDS for unit in ledger.list_units(kind) if unit.part.index == 1}
    assert standing == {"original", "adversarial"}
    monkeypatch.undo()
    assert run_stages(planned, ledger) == (0, 2)


def test_garbage_collection_keeps_revoked_objects_of_a_version(
    shard: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    ledger.record_plan(planned.to_record())
    run_stages(planned, ledger)
    finalize(ledger)
    ledger.revoke(planned.dataset, {Part("s", 1, 3)})
    orphan = "shards/original/x-0/s/00000-of-00001-0123456789abcdef.tar"
    ledger.storage.put(orphan, b"")
    assert [item.key for item in garbage.find(ledger, age_s=0)] == [orphan]


def test_a_duplicate_key_revokes_no_part(ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0), sample(1), sample(0)])
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    run_stages(planned, ledger)
    assert [row.key for row in list_quarantined(ledger)] == ["image00000"]
    assert list(quarantine.revoke_usable_parts(planned, ledger, other_run=lambda: None)) == [], (
        "the first of them was used before"
    )


def test_nothing_is_revoked_while_another_run_is_active(
    shard: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    run_with_older_decoder(planned, ledger)
    before = digests(ledger)
    with leases.exclusive_access(ledger.storage) as other:
        leases.write_heartbeat(ledger.storage, "begun-since", plan="p", state="running", counts={})
        assert list(quarantine.revoke_usable_parts(planned, ledger, other_run=other)) == []
    assert digests(ledger) == before


def test_results_of_a_replaced_original_are_refused_and_revoked(
    shard: Path, ledger: Ledger, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint))
    run_with_older_decoder(planned, ledger)
    late = [
        marker
        for kind in UNIT_KINDS[1:]
        for marker in ledger.read_markers(ledger.list_units(kind))
        if marker.unit.part.index == 1
    ]
    list(quarantine.revoke_usable_parts(planned, ledger, other_run=lambda: None))
    run_stages(planned, ledger)
    sound = digests(ledger)
    # As if a writer, whose lease had run out while it slept, committed what it had made before.
    for marker in late:
        ledger.storage.put_record(marker.unit.marker_key, asdict(marker), if_absent=False)
    ledger.record_plan(planned.to_record())
    with pytest.raises(
        IntegrityError,
        match="computed from another original part than the one that is committed; run generate --retry-failed",
    ):
        finalize(ledger)
    assert list(quarantine.revoke_usable_parts(planned, ledger, other_run=lambda: None)) == [
        (Part("s", 1, 3), "it was attacked before its original was made again")
    ]
    run_stages(planned, ledger)
    assert digests(ledger) == sound
    assert finalize(ledger).missing == 0
