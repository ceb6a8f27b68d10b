"""The device of a worker: which, how it computes, and when it is broken."""

import resource

import ray
import torch

from pipeline.models import malloc


def own() -> torch.device:
    """The GPU that Ray gave this worker; where it gave none, the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() and ray.get_gpu_ids() else torch.device("cpu")


def most_held_bytes(device: torch.device) -> int:
    """The most that this process has held of a device's memory; of a CPU's, with all its libraries."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def is_broken_by(error: Exception) -> bool:
    """Whether every later call on this process's device will fail as well: such a process can only be replaced."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def settle(threads: int) -> None:
    """Sets threads, full float32 and fixed algorithms, and has the heap kept.

    The literal penalty is a difference of gradients at points 2.6e-5 a pixel apart, which TF32's 10-bit mantissa cannot
    tell from each other; and a rerun must give the same bytes.
    """
    malloc.keep()
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
