"""Time of a gradient by kind of operation, on timm's network and on the optimized one."""

import copy

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from jobs.runners.benchmark import NETWORKS, PlainModel
from pipeline.models import malloc
from pipeline.models.classifier import Classifier
from tests.bench.figures import Figure

BATCH, TIMES = 8, 4

# Kind → parts of the names of its operations; the first kind that matches counts.
KINDS = {
    "convolutions": ("conv",),
    "batch norms": ("batch_norm",),
    "activations": ("hardtanh", "threshold", "relu", "clamp"),
    "copies, fills, padding": ("copy", "fill", "zero", "pad", "pixel_shuffle", "cat"),
    "all else": ("",),
}


def profiled() -> list[Figure]:
    """Milliseconds per image of MI-FGSM's gradients, for timm's network and for the optimized one, on one thread."""
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for name in NETWORKS:
        torch.manual_seed(0)
        network = timm.create_model(name).eval()
        settings = timm.data.resolve_model_data_config(network)
        plain = PlainModel(copy.deepcopy(network), settings["mean"], settings["std"])
        preprocessing = {key: settings[key] for key in ("mean", "std", "interpolation")}
        fast = Classifier(network, {**preprocessing, "policy": "direct", "input_size": 224}).optimize_for(
            torch.device("cpu")
        )
        for label, model, configure_malloc in (
            ("plain", plain, malloc.restore_defaults),
            ("ours", fast, malloc.keep_freed_memory),
        ):
            configure_malloc()
            times = _by_kind(model)
            times["together"] = sum(times.values())
            figures += [Figure(f"{name}, {label}: {kind}", value, "ms per image") for kind, value in times.items()]
    return figures


def _by_kind(model: nn.Module) -> dict[str, float]:
    images, labels = torch.rand(BATCH, 3, 224, 224), torch.zeros(BATCH, dtype=torch.int64)

    def gradient() -> None:
        inputs = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)

    gradient()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(TIMES):
            gradient()
    times = dict.fromkeys(KINDS, 0.0)
    for operation in profiler.key_averages():
        kind = next(kind for kind, parts in KINDS.items() if any(part in operation.key.lower() for part in parts))
        times[kind] += operation.self_cpu_time_total / 1000 / TIMES / BATCH
    return times
