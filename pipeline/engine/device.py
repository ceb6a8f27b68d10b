"""The device of a worker: which it is, how it computes, its memory, and whether an error has broken it."""

import resource

import ray
import torch

from pipeline.models import malloc


def worker_device() -> torch.device:
    """The GPU that Ray gave this worker; the CPU where it gave none."""
    return torch.device("cuda") if torch.cuda.is_available() and ray.get_gpu_ids() else torch.device("cpu")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory of a device that this process has held; on a CPU, the peak of its whole resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def is_broken_by(error: Exception) -> bool:
    """Whether every later call on this process's device will fail as well: the process can only be replaced."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def configure(threads: int) -> None:
    """Sets the number of threads, float32 without TF32, deterministic algorithms, and a heap that is kept.

    The literal penalty is a difference of gradients at points 2.6e-5 a pixel apart, which TF32's 10-bit mantissa cannot
    tell from each other; and a rerun must give the same bytes.
    """
    malloc.keep_freed_memory()
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
