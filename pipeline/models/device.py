"""The device that networks run on: how it computes, its memory, and what its errors mean."""

import os
import re
import resource
import warnings

import torch
from torch import Tensor, nn

from pipeline.attack.gradient import input_gradient
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
    torch.set_num_threads(threads)
    allow_tf32(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if torch.cuda.is_available():
        _choose_repeatable_kernels()
    else:  # a GPU's process has no activations in its heap, and many threads that encode
        malloc.keep_freed_memory()


def _choose_repeatable_kernels() -> None:
    """Has CUDA use kernels that add in one order, where there are such, and warn where there are none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its module's class
    # Of attention's kernels the plain one is left: where torch only warns, the gradients of the others add in no order.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def nondeterministic_operations(network: nn.Module, images: Tensor) -> list[str]:
    """Names of the operations in a network's gradient, in float32, of which torch says that they may not repeat.

    Args:
        network: Maps (B, 3, H, W) in [0, 1] to logits, on the images' device, which `configure` has set.
        images: (B, 3, H, W) float32.

    Raises:
        ValueError: The logits have no gradient with respect to the images.
    """
    inputs = images.detach().clone().requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        input_gradient(network(inputs).sum(), inputs)
    found = (re.match(r"(\S+) does not have a deterministic implementation", str(each.message)) for each in caught)
    return sorted({match[1] for match in found if match})


def gpu_or_cpu(*, has_gpu: bool) -> torch.device:
    """The GPU of a process that was given one, else the CPU."""
    is_gpu = has_gpu and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if is_gpu else torch.device("cpu")


def keep_to_share(device: torch.device, share: float) -> None:
    """Limits what torch allocates in this process to its share of a GPU's memory, where others have the rest.

    It runs out of memory, and halves its batch, before it takes what the others need.
    """
    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)


def free_gpu_memory_bytes(device: torch.device) -> float:
    """What this process may still allocate on a GPU: what is free, or its share if that is less."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    # What it has reserved and does not use is free for it.
    return max(1.0, min(free + reserved, share * total) - allocated)


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
