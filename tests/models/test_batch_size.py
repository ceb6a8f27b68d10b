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
from pipeline.models import batch_size
from pipeline.models.batch_size import fastest_batch_size, run_in_batches
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import sample, write_shard

NUMBERS = torch.arange(100)


class Device:
    """A device whose memory fits `capacity` images at a time."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tried_sizes: list[int] = []

    def __call__(self, batch: slice) -> Tensor:
        images = NUMBERS[batch]
        self.tried_sizes.append(len(images))
        if len(images) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nA page of advice.")
        return images


@pytest.mark.parametrize("capacity", [1, 3, 8, 1000])
@pytest.mark.parametrize(("count", "size"), [(0, 8), (1, 8), (8, 8), (30, 8), (31, 13), (5, 64)])
def test_halved_batches_contain_every_image_once_and_in_order(capacity: int, count: int, size: int) -> None:
    results, last_size = run_in_batches(Device(capacity), count, size)
    assert torch.equal(torch.cat([NUMBERS[:0], *results]), NUMBERS[:count])
    assert last_size == size or last_size <= capacity
    assert {len(result) for result in results[:-1]} <= {last_size}


def test_a_batch_size_that_did_not_fit_is_not_tried_again() -> None:
    device = Device(4)
    results, last_size = run_in_batches(device, 32, 16)
    assert (device.tried_sizes, last_size) == ([16, 8, *[4] * 8], 4)
    assert len(results) == 8


def test_results_are_kept_when_memory_runs_out_halfway() -> None:
    device = Device(8)

    def shrinking(batch: slice) -> Tensor:
        device.capacity = 8 if batch.start < 16 else 2
        return device(batch)

    results, last_size = run_in_batches(shrinking, 24, 8)
    assert torch.equal(torch.cat(results), NUMBERS[:24])
    assert ([len(result) for result in results], last_size) == ([8, 8, 2, 2, 2, 2], 2)


def test_an_image_that_does_not_fit_is_reported_in_one_line() -> None:
    with pytest.raises(CapacityError) as refused:
        run_in_batches(Device(0), 4, 4)
    assert str(refused.value) == (
        "one image does not fit into the device's memory: CUDA out of memory. Tried to allocate 2 GiB."
    )


def test_pythons_memory_error_halves_the_batch_too() -> None:
    def at_most_one(batch: slice) -> Tensor:
        if batch.stop - batch.start > 1:
            raise MemoryError
        return NUMBERS[batch]

    assert run_in_batches(at_most_one, 4, 4)[1] == 1


def test_other_errors_are_raised_at_once() -> None:
    for error in (RuntimeError("CUDA error: device-side assert triggered"), ValueError("shapes differ")):
        calls: list[slice] = []

        def fail(batch: slice, error: Exception = error, calls: list[slice] = calls) -> Tensor:
            calls.append(batch)
            raise error

        with pytest.raises(type(error), match=str(error)):
            run_in_batches(fail, 8, 8)
        assert len(calls) == 1


# Both stages on every shard of FOLDER/in, in a process whose memory may grow only by `room_mb` while torch computes, so
# that torch's allocator fails. (Other libraries crash where they cannot allocate a thread's stack.)
WITH_LIMITED_MEMORY = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import torch
from pipeline.data.codec import Preparation
from pipeline.ledger import Ledger
from pipeline.models import predict
from pipeline.stages import Generator, Scorer
from pipeline.stages.part_attacks import PartAttacks
from pipeline.storage import Storage
from tests import samples

folder, checkpoint, store, batch_size, room_mb, side = sys.argv[1:]
torch.set_num_threads(1)
job = samples.tiny_job(Path(folder), Path(checkpoint), attacks=(samples.attack("mi"),), part_size=64)
network = replace(job.sources[0], input_size=int(side))
data = replace(job.data, preparation=Preparation(resize=int(side), crop=int(side)))
target = replace(job.targets[0], input_size=int(side))
job = replace(job, data=data, sources=(network,), targets=(target,), batch_size=int(batch_size))
planned = samples.make_plan(job, store)
ledger = Ledger(Storage(store))
ledger.record_plan(planned.to_record())
generator, scorer = (stage(planned, ledger, torch.device("cpu")) for stage in (Generator, Scorer))
(item,) = samples.list_pending(planned, ledger)

def limit_memory(compute):
    def run(*arguments, **options):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(room_mb) * 10**6, resource.RLIM_INFINITY))
        try:
            return compute(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return run

if int(room_mb):
    PartAttacks._adversarial = limit_memory(PartAttacks._adversarial)
    predict.predict = limit_memory(predict.predict)
generator.run(item)
scorer.run(item)
"""


def run_both_stages(
    folder: Path, checkpoint: Path, store: str, *, batch_size: int, room_mb: int = 0, side: int = 224
) -> Ledger:
    command = [
        sys.executable,
        "-c",
        WITH_LIMITED_MEMORY,
        *map(str, (folder / "in", checkpoint, folder / store, batch_size, room_mb, side)),
    ]
    # Each thread's arena would take 64 MB of address space.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Ledger(Storage(str(folder / store)))


@pytest.mark.journey
def test_smaller_batches_make_the_same_images_when_memory_really_runs_out(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(64)])
    ledger = run_both_stages(tmp_path, tiny_checkpoint, "limited", batch_size=64, room_mb=600)
    (marker,) = ledger.read_markers(ledger.list_units("adversarial"))
    fitted = marker.fact("batch_size")
    assert 1 <= fitted < 64, "memory did not run out"
    assert marker.fact("n") == 64
    found = audit(ledger)
    assert (found.problems, found.images) == ([], 64)
    unlimited = run_both_stages(tmp_path, tiny_checkpoint, "unlimited", batch_size=fitted)
    (other,) = unlimited.read_markers(unlimited.list_units("adversarial"))
    assert other.fact("pixels_sha256") == marker.fact("pixels_sha256"), "the recorded batch size gives the same bytes"


@pytest.mark.journey
def test_one_image_that_really_does_not_fit_is_reported_in_one_line(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(0)])
    with pytest.raises(AssertionError, match="CapacityError: one image does not fit into the device's memory"):
        # A large image, and memory for everything else: with less, libraries other than torch crash.
        run_both_stages(tmp_path, tiny_checkpoint, "limited", batch_size=64, room_mb=100, side=2048)


class Timed:
    """A device with known times and known memory use per image."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, fixed_s: float, image_s: float, capacity: int, image_share: float
    ) -> None:
        self.tried_sizes: list[int] = []
        timed = self

        def seconds(function: object, size: int, device: torch.device) -> float:
            del function, device
            self.tried_sizes.append(size)
            if size > capacity:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return fixed_s + image_s * size

        class PeakMemory:
            def __init__(self, _: torch.device) -> None:
                self.since = len(timed.tried_sizes)

            def used_share(self) -> float:
                return image_share * max(timed.tried_sizes[self.since :])

        monkeypatch.setattr(batch_size, "_seconds", seconds)
        monkeypatch.setattr(batch_size, "_PeakMemory", PeakMemory)

    def fastest(self, most: int) -> int:
        return fastest_batch_size(lambda _: None, most=most, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("fixed_s", "image_s", "capacity", "image_share", "most", "expected"),
    [
        (0.0, 1.0, 1000, 0.0, 512, 1),  # larger batches are not faster
        (1.0, 1.0, 1000, 0.0, 512, 16),  # 17/16 per image, and 33/32 is not 5% less
        (1.0, 1.0, 12, 0.0, 512, 8),  # larger batches do not fit
        (1.0, 1.0, 1000, 0.0, 4, 4),  # larger batches are not allowed
        (1.0, 1.0, 1000, 0.06, 512, 8),  # eight use half of the memory: sixteen are not tried
        (1.0, 1.0, 1000, 0.11, 512, 4),
        (1.0, 1.0, 1000, 0.9, 512, 1),  # no memory to spare, but it fits
    ],
)
def test_the_fastest_size_is_the_smallest_that_no_larger_one_beats(
    fixed_s: float,
    image_s: float,
    capacity: int,
    image_share: float,
    most: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = Timed(monkeypatch, fixed_s=fixed_s, image_s=image_s, capacity=capacity, image_share=image_share)
    assert timed.fastest(most) == expected
    assert max(timed.tried_sizes) <= min(most, 4 * expected)
    assert timed.fastest(most) == expected, "it does not depend on earlier measurements"


def test_a_device_that_fits_no_image_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CapacityError, match="one image does not fit"):
        Timed(monkeypatch, fixed_s=1.0, image_s=1.0, capacity=0, image_share=0.0).fastest(512)


def test_peak_memory_counts_memory_that_is_freed_at_once() -> None:
    device, megabytes = torch.device("cpu"), 400
    free = batch_size._free_bytes()
    shares = []
    for size in (megabytes, megabytes // 4):
        memory = batch_size._PeakMemory(device)
        torch.ones(size * 1_000_000, dtype=torch.uint8)
        shares.append(memory.used_share() * free / 1e6)
    assert shares[0] == pytest.approx(megabytes, rel=0.3)
    assert shares[1] == pytest.approx(megabytes // 4, rel=0.5)
