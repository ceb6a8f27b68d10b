"""The device that networks run on: how it computes, its memory, and what its errors mean."""

import resource

import torch

from pipeline.attack.precision import allow_tf32
from pipeline.models import malloc

# What a lack of memory is called where torch does not say OutOfMemoryError. A CPU's allocator raises a plain
# RuntimeError, and so does its convolution library, which does not say why; CUDA's libraries allocate for themselves.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",
    "unable to find an engine to execute this computation",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


def configure(threads: int) -> None:
    """Sets the number of threads, float32 without TF32, deterministic algorithms, and a heap that is kept.

    The literal penalty is a difference of gradients at points 2.6e-5 a pixel apart, which TF32's 10-bit mantissa cannot
    tell from each other; and a rerun must give the same bytes.
    """
    malloc.keep_freed_memory()
    torch.set_num_threads(threads)
    allow_tf32(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def gpu_or_cpu(*, has_gpu: bool) -> torch.device:
    """The GPU of a process that was given one, else the CPU."""
    return torch.device("cuda") if has_gpu and torch.cuda.is_available() else torch.device("cpu")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory of a device that this process has held; on a CPU, the peak of its whole resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def release_memory(device: torch.device) -> None:
    """Hands memory that this process has freed back to the device, for its libraries and for other processes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may do."""
    message = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        phrase in message for phrase in _OUT_OF_MEMORY
    )


def is_broken_by(error: Exception) -> bool:
    """Whether every later call on this process's device will fail as well: the process can only be replaced."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
