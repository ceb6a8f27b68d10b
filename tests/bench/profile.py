"""Where a gradient's time goes, by kind of operation, before and after."""

import copy

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from jobs.commands.benchmark import NETWORKS, Usual
from pipeline.models import malloc
from pipeline.models.classifier import Classifier
from tests.bench.figures import Figure

BATCH, TIMES = 8, 4

# Kind → what the names of its operations hold; the first that fits, of torch's own times.
KINDS = {
    "convolutions": ("conv",),
    "batch norms": ("batch_norm",),
    "activations": ("hardtanh", "threshold", "relu", "clamp"),
    "copies, fills, padding": ("copy", "fill", "zero", "pad", "pixel_shuffle", "cat"),
    "all else": ("",),
}


def profiled() -> list[Figure]:
    """Milliseconds an image of MI-FGSM's gradients, for timm's network and for ours; one thread."""
    torch.set_num_threads(1)
    found: list[Figure] = []
    for name in NETWORKS:
        torch.manual_seed(0)
        network = timm.create_model(name).eval()
        settings = timm.data.resolve_model_data_config(network)
        usual = Usual(copy.deepcopy(network), settings["mean"], settings["std"])
        told = {key: settings[key] for key in ("mean", "std", "interpolation")}
        fast = Classifier(network, {**told, "policy": "direct", "input_size": 224}).quicken(torch.device("cpu"))
        for called, model, set_heap in (("plain", usual, malloc.usual), ("ours", fast, malloc.keep)):
            set_heap()
            spent = _by_kind(model)
            spent["together"] = sum(spent.values())
            found += [Figure(f"{name}, {called}: {kind}", value, "ms an image") for kind, value in spent.items()]
    return found


def _by_kind(model: nn.Module) -> dict[str, float]:
    images, labels = torch.rand(BATCH, 3, 224, 224), torch.zeros(BATCH, dtype=torch.int64)

    def gradient() -> None:
        inputs = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)

    gradient()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(TIMES):
            gradient()
    spent = dict.fromkeys(KINDS, 0.0)
    for each in seen.key_averages():
        kind = next(kind for kind, parts in KINDS.items() if any(part in each.key.lower() for part in parts))
        spent[kind] += each.self_cpu_time_total / 1000 / TIMES / BATCH
    return spent
