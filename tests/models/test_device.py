"""What a device's errors mean, and the settings of torch that other programs may have made before."""

import subprocess
import sys

import pytest
import torch

from pipeline.errors import CapacityError
from pipeline.models import device
from pipeline.models.batch_size import fastest_batch_size, run_in_batches
from pipeline.models.device import free_gpu_memory_bytes, gpu_or_cpu, is_broken_by, is_out_of_memory, keep_to_share
from tests.conftest import ROOT

# As CUDA, cuDNN and cuBLAS word it.
OUT_OF_MEMORY: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.AcceleratorError("CUDA error: out of memory"),
]
BROKEN: list[Exception] = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_a_lack_of_memory_halves_the_batch_under_every_name(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_broken_by(error)

    def at_most_two(batch: slice) -> torch.Tensor:
        if batch.stop - batch.start > 2:
            raise error
        return torch.arange(batch.start, batch.stop)

    results, size = run_in_batches(at_most_two, 8, 8)
    assert (torch.cat(results).tolist(), size) == (list(range(8)), 2)


@pytest.mark.parametrize("error", BROKEN, ids=str)
def test_a_broken_device_is_no_lack_of_memory(error: Exception) -> None:
    assert is_broken_by(error)
    assert not is_out_of_memory(error)


def test_memory_is_handed_back_after_a_size_that_did_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[torch.device] = []
    monkeypatch.setattr("pipeline.models.batch_size.release_memory", released.append)

    def at_most_two(size: int) -> None:
        if size > 2:
            raise OUT_OF_MEMORY[1]

    cpu = torch.device("cpu")
    assert fastest_batch_size(at_most_two, most=64, device=cpu) <= 2
    assert released == [cpu]
    with pytest.raises(CapacityError, match="one image does not fit"):
        fastest_batch_size(lambda _: at_most_two(3), most=64, device=cpu)


@pytest.mark.parametrize(("share", "expected"), [(1.0, 60 + 15 - 10), (0.51, 51 - 10)])
def test_a_process_may_allocate_what_is_free_or_its_share(
    share: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [1.0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    gpu = gpu_or_cpu(has_gpu=True)
    assert gpu.index == 0, "the two functions below take no other device"
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda value, _: shares.append(value))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: shares[-1])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60, 100))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 15)
    keep_to_share(gpu, share)
    assert free_gpu_memory_bytes(gpu) == pytest.approx(expected)
    keep_to_share(torch.device("cpu"), 0.1)
    assert shares[-1] == share


_PROGRAM = """
import torch
from pipeline.attack import precision
precision._HAS_PRECISIONS = {new}
{before}
read = precision._read_switches
was = read()
with precision.compute_in("float32", torch.device("cpu")):
    assert {on} not in read(), read()
    {inside}
    with precision.compute_in("tf32", torch.device("cpu")):
        assert set(read()) == {{{on}}}, read()
    assert {on} not in read(), read()
assert read() == was, (read(), was)
{after}
"""
# What a program may have set before: nothing, the flags before torch 2.9, those since, or what sets both.
BEFORE = {
    "nothing": "",
    "old-on": "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True",
    "old-off": "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False",
    "new-on": 'torch.backends.fp32_precision = "tf32"',
    "new-mixed": 'torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = "ieee", "tf32"',
    "matmul": 'torch.set_float32_matmul_precision("high")',
}


@pytest.mark.parametrize("before", BEFORE)
def test_tf32_is_set_and_restored_whichever_flags_are_in_use(before: str) -> None:
    # What networks do for a double backward of RNNs; torch itself refuses it where a program has set the new flags.
    inside = "pass" if before.startswith("new") else "torch.backends.cudnn.flags(enabled=False).__enter__()"
    program = _PROGRAM.format(new=True, on="'tf32'", before=BEFORE[before], after="", inside=inside)
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("before", ["nothing", "old-on", "old-off"])
def test_tf32_is_set_and_restored_on_a_torch_that_has_the_old_flags_only(before: str) -> None:
    inside = "pass"
    program = _PROGRAM.format(new=False, on="'tf32'", before=BEFORE[before], after="", inside=inside)
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_gradient_that_may_not_repeat_is_named() -> None:
    """In a process of its own: the settings are torch's, for all that it does."""
    code = """
import torch
from pipeline.models import device

class Filling(torch.nn.Module):
    def forward(self, images):
        flat = images.flatten(1)
        return flat.new_zeros(flat.shape[1]).put_(torch.arange(3), flat[0, :3]) * flat

device._choose_repeatable_kernels()
images = torch.rand(2, 3, 4, 4)
print(*(device.nondeterministic_operations(network, images) for network in (Filling(), torch.nn.Flatten())))
print(torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled())
print(torch.backends.cuda.mem_efficient_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['put_'] []", "False True", "False False"]


def test_a_cpu_keeps_torchs_own_choice_of_algorithms() -> None:
    device.configure(torch.get_num_threads())
    assert not torch.are_deterministic_algorithms_enabled()
