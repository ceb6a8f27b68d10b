import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import CapacityError
from pipeline.ledger import Ledger
from pipeline.maintenance.verify import audit
from pipeline.models import batch_size as batches
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import sample, write_shard

NUMBERS = torch.arange(100)


class Device:
    """A device that holds so many images at a time."""

    def __init__(self, holds: int) -> None:
        self.holds = holds
        self.asked: list[int] = []

    def __call__(self, batch: slice) -> Tensor:
        images = NUMBERS[batch]
        self.asked.append(len(images))
        if len(images) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nA page of advice.")
        return images


@pytest.mark.parametrize("holds", [1, 3, 8, 1000])
@pytest.mark.parametrize(("count", "size"), [(0, 8), (1, 8), (8, 8), (30, 8), (31, 13), (5, 64)])
def test_every_image_comes_once_and_in_order_however_often_batches_are_halved(
    holds: int, count: int, size: int
) -> None:
    device = Device(holds)
    made, used = batches.run(device, count, size)
    assert torch.equal(torch.cat([NUMBERS[:0], *made]), NUMBERS[:count])
    assert used == size or used <= holds
    assert {len(each) for each in made[:-1]} <= {used}


def test_a_batch_that_did_not_fit_is_not_tried_again() -> None:
    device = Device(4)
    made, used = batches.run(device, 32, 16)
    assert (device.asked, used) == ([16, 8, *[4] * 8], 4)
    assert len(made) == 8


def test_memory_that_runs_out_halfway_keeps_what_is_made() -> None:
    device = Device(8)

    def shrinking(batch: slice) -> Tensor:
        device.holds = 8 if batch.start < 16 else 2
        return device(batch)

    made, used = batches.run(shrinking, 24, 8)
    assert torch.equal(torch.cat(made), NUMBERS[:24])
    assert ([len(each) for each in made], used) == ([8, 8, 2, 2, 2, 2], 2)


def test_an_image_that_does_not_fit_alone_is_one_line() -> None:
    with pytest.raises(CapacityError) as refused:
        batches.run(Device(0), 4, 4)
    assert str(refused.value) == (
        "one image does not fit into the device's memory: CUDA out of memory. Tried to allocate 2 GiB."
    )


def test_pythons_own_memory_error_halves_as_well() -> None:
    def picky(batch: slice) -> Tensor:
        if batch.stop - batch.start > 1:
            raise MemoryError
        return NUMBERS[batch]

    assert batches.run(picky, 4, 4)[1] == 1


def test_other_errors_pass_through_at_once() -> None:
    for error in (RuntimeError("CUDA error: device-side assert triggered"), ValueError("shapes differ")):
        calls: list[slice] = []

        def fail(batch: slice, error: Exception = error, calls: list[slice] = calls) -> Tensor:
            calls.append(batch)
            raise error

        with pytest.raises(type(error), match=str(error)):
            batches.run(fail, 8, 8)
        assert len(calls) == 1


# Both stages on every shard of FOLDER/in, in a process that, while torch computes, may take only so much memory more
# than it had before, so that torch's own allocator fails. (Other libraries that cannot have a thread's stack crash.)
STARVED = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import torch
from pipeline import score
from pipeline.codec import Preparation
from pipeline.ledger import Ledger
from pipeline.outline import all_scopes
from pipeline.stages import Generator, Scorer
from pipeline.storage import Storage
from tests import samples

folder, checkpoint, store, batch_size, room_mb, side = sys.argv[1:]
torch.set_num_threads(1)
job = samples.tiny_job(Path(folder), Path(checkpoint), attacks=(samples.attack("mi"),), part_size=64)
network = replace(job.sources[0], input_size=int(side))
data = replace(job.data, preparation=Preparation(resize=int(side), crop=int(side)))
target = replace(job.targets[0], input_size=int(side))
job = replace(job, data=data, sources=(network,), targets=(target,), batch_size=int(batch_size))
planned = samples.resolve(job, store)
ledger = Ledger(Storage(store))
ledger.record_plan(planned.describe())
generator, scorer = (stage(planned, ledger, torch.device("cpu")) for stage in (Generator, Scorer))
(item,) = samples.pending(planned, ledger)

def starved(compute):
    def run(*arguments, **options):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + int(room_mb) * 10**6, resource.RLIM_INFINITY))
        try:
            return compute(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return run

if int(room_mb):
    generator._adversarial, score.predict = starved(generator._adversarial), starved(score.predict)
generator.run(item)
scorer.run(item)
"""


def run_both_stages(
    folder: Path, checkpoint: Path, store: str, *, batch_size: int, room_mb: int = 0, side: int = 224
) -> Ledger:
    command = [
        sys.executable,
        "-c",
        STARVED,
        *map(str, (folder / "in", checkpoint, folder / store, batch_size, room_mb, side)),
    ]
    # An arena a thread would take 64 MB of address space each.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Ledger(Storage(str(folder / store)))


def test_where_memory_really_runs_out_a_smaller_batch_makes_the_same_images(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(64)])
    ledger = run_both_stages(tmp_path, tiny_checkpoint, "starved", batch_size=64, room_mb=600)
    (marker,) = ledger.markers(ledger.units("adversarial"))
    fitted = marker.fact("batch_size")
    assert 1 <= fitted < 64, "memory did not run out"
    assert marker.fact("n") == 64
    found = audit(ledger)
    assert (found.problems, found.images) == ([], 64)
    fed = run_both_stages(tmp_path, tiny_checkpoint, "fed", batch_size=fitted)
    (other,) = fed.markers(fed.units("adversarial"))
    assert other.fact("pixels_sha256") == marker.fact("pixels_sha256"), "the recorded batch size gives the same bytes"


def test_one_image_that_really_does_not_fit_is_one_line(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    with pytest.raises(AssertionError, match="CapacityError: one image does not fit into the device's memory"):
        # A large image, and room for all else: in less, other libraries than torch crash.
        run_both_stages(tmp_path, tiny_checkpoint, "starved", batch_size=64, room_mb=100, side=2048)


class Timed:
    """A device whose time for so many images, and what each takes of its memory, are known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fixed: float, each: float, holds: int, share: float) -> None:
        self.asked: list[int] = []
        device = self

        def seconds(function: object, size: int, device: torch.device) -> float:
            del function, device
            self.asked.append(size)
            if size > holds:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return fixed + each * size

        class Memory:
            def __init__(self, _: torch.device) -> None:
                self.since = len(device.asked)

            def taken(self) -> float:
                return share * max(device.asked[self.since :])

        monkeypatch.setattr(batches, "_seconds", seconds)
        monkeypatch.setattr(batches, "_Memory", Memory)

    def fastest(self, most: int) -> int:
        return batches.fastest(lambda _: None, most=most, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("fixed", "each", "holds", "share", "most", "expected"),
    [
        (0.0, 1.0, 1000, 0.0, 512, 1),  # nothing is gained by more
        (1.0, 1.0, 1000, 0.0, 512, 16),  # 17/16 a piece, and 33/32 is not 5% less
        (1.0, 1.0, 12, 0.0, 512, 8),  # more does not fit
        (1.0, 1.0, 1000, 0.0, 4, 4),  # more is not asked for
        (1.0, 1.0, 1000, 0.06, 512, 8),  # eight take half: sixteen are not tried
        (1.0, 1.0, 1000, 0.11, 512, 4),
        (1.0, 1.0, 1000, 0.9, 512, 1),  # no head room, but it fits
    ],
)
def test_the_fastest_size_is_the_least_that_more_would_not_beat(
    fixed: float, each: float, holds: int, share: float, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Timed(monkeypatch, fixed=fixed, each=each, holds=holds, share=share)
    assert timed.fastest(most) == expected
    assert max(timed.asked) <= min(most, 4 * expected)
    assert timed.fastest(most) == expected, "whatever was tried before"


def test_a_size_that_nothing_fits_into_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CapacityError, match="one image does not fit"):
        Timed(monkeypatch, fixed=1.0, each=1.0, holds=0, share=0.0).fastest(512)


def test_memory_is_what_is_taken_from_now_on_even_if_it_is_given_back_at_once() -> None:
    device, megabytes = torch.device("cpu"), 400
    free = batches._free_bytes()
    shares = []
    for size in (megabytes, megabytes // 4):
        memory = batches._Memory(device)
        torch.ones(size * 1_000_000, dtype=torch.uint8)
        shares.append(memory.taken() * free / 1e6)
    assert shares[0] == pytest.approx(megabytes, rel=0.3)
    assert shares[1] == pytest.approx(megabytes // 4, rel=0.5)
