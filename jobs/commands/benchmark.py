"""Gradients per second, ours beside others' loops on the same network, images and threads; torch and timm suffice.

Every side attacks the same images in the same number of steps, all sides in turn, round after round in one process:
what is compared are ratios within a round. Beside plain loops stand the libraries that are installed.
"""

import argparse
import copy
import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pipeline.attack.gradient_transforms import GradientNormPenalty
from pipeline.attack.precision import Precision
from pipeline.attack.recipe import build
from pipeline.models import malloc
from pipeline.models.classifier import Classifier
from pipeline.models.cpu_fusion import has_routines

NETWORKS = ("resnet50", "tf_efficientnet_lite0")
EPSILON, R, BETA = Fraction(8, 255), 0.01, 0.8
# How many times as fast as the fastest other side, and what share of the peak, is aimed at.
BARS = {"cpu": (1.4, 0.6), "cuda": (4.0, 0.4)}

# Whose rate is held to the bars.
OURS = {"cpu": "ours", "cuda": "ours, bfloat16"}

# Attacks the images of the benchmark.
Run = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Side:
    """One implementation of an attack.

    Attributes:
        attack: Which attack.
        name: Whose; `ours` is this project's, in float32 unless it says otherwise.
        run: Attacks images (B, 3, 224, 224) float32 in [0, 1].
        gradients: What it costs an image.
    """

    attack: str
    name: str
    run: Run
    gradients: int


@dataclass(frozen=True)
class Rate:
    """What a side did, over the rounds.

    Attributes:
        network: Attacked.
        attack: Which.
        name: Whose.
        gradients_per_s: Image gradients a second: the median, the least and the most.
        times: Ours, as it is held to the bars, is so many times as fast in the same round: median, least and most.
    """

    network: str
    attack: str
    name: str
    gradients_per_s: tuple[float, float, float]
    times: tuple[float, float, float]


class Usual(nn.Module):
    """A network as most programs have it: normalisation before it, and all else as timm makes it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def sides(usual: Usual, fast: nn.Module, steps: int) -> list[Side]:
    """Ours and the others', for MI-FGSM and for what TransferAttack calls GNP on it."""
    alpha = float(EPSILON / steps)
    budget: dict[str, Any] = {"eps": float(EPSILON), "steps": steps}
    penalty = GradientNormPenalty(form="look-ahead", norm="mean-abs", r=R, beta=BETA)

    def ours(combination: str, precision: Precision) -> Run:
        parts = {"gnp": penalty} if "gnp" in combination else {}
        attack = build(combination, epsilon=EPSILON, steps=steps, parts=parts, precision=precision)
        return lambda images, labels: attack(fast, images, labels, [str(index) for index in range(len(images))])

    found = [
        Side("MI-FGSM", "ours", ours("mi", "float32"), steps),
        Side("look-ahead", "ours", ours("gnp+mi", "float32"), 2 * steps),
        Side("MI-FGSM", "plain loop", lambda *batch: plain(usual, *batch, steps=steps, look_ahead=False), steps),
        Side(
            "look-ahead",
            "TransferAttack's loop",
            lambda *batch: plain(usual, *batch, steps=steps, look_ahead=True),
            2 * steps,
        ),
    ]
    if usual.mean.is_cuda or has_routines(torch.bfloat16):
        found.append(Side("MI-FGSM", "ours, bfloat16", ours("mi", "bfloat16"), steps))
        found.append(Side("look-ahead", "ours, bfloat16", ours("gnp+mi", "bfloat16"), 2 * steps))
    if importlib.util.find_spec("torchattacks"):
        many = importlib.import_module("torchattacks").MIFGSM(usual, alpha=alpha, **budget)
        found.append(Side("MI-FGSM", "torchattacks", many, steps))
    if importlib.util.find_spec("torchattack"):
        one = importlib.import_module("torchattack").MIFGSM(usual, device=usual.mean.device, alpha=alpha, **budget)
        found.append(Side("MI-FGSM", "torchattack", one, steps))
    return found


def plain(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, look_ahead: bool) -> Tensor:
    """MI-FGSM as it is mostly written; with the look-ahead, a transcription of TransferAttack's class named GNP."""
    epsilon, alpha = float(EPSILON), float(EPSILON / steps)
    perturbation, momentum = torch.zeros_like(images), torch.zeros_like(images)

    def gradient(at: Tensor) -> Tensor:
        inputs = at.clone().detach().requires_grad_()
        (found,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
        return found

    for _ in range(steps):
        found = gradient(images + perturbation)
        if look_ahead:
            there = gradient(images + perturbation + R * found / found.abs().mean(dim=(1, 2, 3), keepdim=True))
            found = (1 + BETA) * found + BETA * there
        momentum = momentum + found / found.abs().mean(dim=(1, 2, 3), keepdim=True)
        perturbation = (perturbation + alpha * momentum.sign()).clamp(-epsilon, epsilon)
        perturbation = (images + perturbation).clamp(0, 1) - images
    return images + perturbation


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, to the end of what it has the device do."""
    _wait(device)
    started = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - started


def peak(device: torch.device) -> dict[str, float]:
    """Floating-point operations a second that the device is seen to reach, in the type that is held to the bars.

    The best of twenty tries, in float32 on a CPU and in bfloat16 on a GPU.

    A matrix product, and a 3 × 3 convolution as there are in the middle of a ResNet-50.
    """
    side, batch, dtype = (2048, 8, torch.float32) if device.type == "cpu" else (8192, 256, torch.bfloat16)
    left, right = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    images = torch.rand(batch, 256, 14, 14, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.rand(256, 256, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    product = min(seconds(lambda: left @ right, device) for _ in range(20))
    convolution = min(seconds(lambda: F.conv2d(images, kernel, padding=1), device) for _ in range(20))
    return {"product": 2 * side**3 / product, "convolution": 2 * batch * 14 * 14 * 256 * 256 * 9 / convolution}


def measured(name: str, device: torch.device, *, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Every side's rate on one network, with random weights: they cost what trained ones do."""
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    config = timm.data.resolve_model_data_config(network)
    usual = Usual(copy.deepcopy(network), config["mean"], config["std"]).to(device)
    preprocessing = {key: config[key] for key in ("mean", "std", "interpolation")}
    fast = Classifier(network, {**preprocessing, "policy": "direct", "input_size": 224}).quicken(device)
    images, labels = torch.rand(batch, 3, 224, 224, device=device), torch.zeros(batch, dtype=torch.long, device=device)
    # Of the plain network: what ours calls is not known to the counter.
    with FlopCounterMode(display=False) as counted:
        frozen = copy.deepcopy(usual).requires_grad_(False)  # no gradients of weights are taken by anybody
        F.cross_entropy(frozen(images[:1].clone().requires_grad_()), labels[:1]).backward()  # type: ignore[no-untyped-call]
    compared = sides(usual, fast, steps)
    spent: dict[Side, list[float]] = {side: [] for side in compared}
    for _ in range(rounds):
        for is_ours, have_heap in ((True, malloc.keep), (False, malloc.usual)):
            have_heap()
            group = [side for side in compared if side.name.startswith("ours") == is_ours]
            group[0].run(images, labels)  # so that nobody pays for what the others left of heap and caches
            for side in group:
                spent[side].append(seconds(partial(side.run, images, labels), device) / side.gradients)
    ours = {side.attack: times for side, times in spent.items() if side.name == OURS[device.type]}
    rates = [
        Rate(
            name,
            side.attack,
            side.name,
            _spread([batch / each for each in times]),
            _spread([theirs / mine for theirs, mine in zip(times, ours[side.attack], strict=True)]),
        )
        for side, times in spent.items()
    ]
    return {"network": name, "flops_a_gradient": counted.get_total_flops(), "rates": [asdict(each) for each in rates]}


def run(device: str, out: Path, *, batch: int, steps: int, rounds: int, threads: int) -> int:
    """Measures, shows and writes; exit code 1 where a bar is missed."""
    if device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 0
    torch.set_num_threads(threads)
    where = torch.device(device)
    called = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} threads"
    reached = peak(where)
    found = [measured(name, where, batch=batch, steps=steps, rounds=rounds) for name in NETWORKS]
    held = [bar for each in found for bar in bars(each, max(reached.values()), device)]
    print(f"{called}, torch {torch.__version__}: batches of {batch}, {steps} steps, {rounds} rounds")
    print(f"peak seen: {reached['product'] / 1e9:.0f} GFLOP/s in products, {reached['convolution'] / 1e9:.0f} in conv.")
    row = "{:24}{:12}{:24}{:>12}{:>20}{:>8}{:>14}"
    print(row.format("network", "attack", "whose", "gradients/s", "least … most", "ours ×", "least … most"))
    for rate in (rate for each in found for rate in each["rates"]):
        (middle, least, most), (times, fewest, largest) = rate["gradients_per_s"], rate["times"]
        spread = f"{least:.2f} … {most:.2f}", f"{times:.2f}", f"{fewest:.2f} … {largest:.2f}"
        print(row.format(rate["network"], rate["attack"], rate["name"], f"{middle:.2f}", *spread))
    for bar in held:
        print(f"{'holds ' if bar['holds'] else 'MISSED'}  {bar['what']}: {bar['found']:.2f}, wanted {bar['wanted']:g}")
    out.mkdir(parents=True, exist_ok=True)
    told = {"device": called, "torch": torch.__version__, "peak": reached, "networks": found, "bars": held}
    (out / f"gradients-{device}.json").write_text(json.dumps(told, indent=1) + "\n")
    return 0 if all(bar["holds"] for bar in held) else 1


def bars(found: dict[str, Any], reached: float, device: str) -> list[dict[str, Any]]:
    """What was aimed at for one network, and whether it holds."""
    times, share = BARS[device]
    ours = [rate["gradients_per_s"][0] for rate in found["rates"] if rate["name"] == OURS[device]]
    made: list[dict[str, Any]] = []
    for attack in ("MI-FGSM", "look-ahead"):
        others = [rate for rate in found["rates"] if rate["attack"] == attack and not rate["name"].startswith("ours")]
        nearest = min(others, key=lambda rate: float(rate["times"][0]))
        what = f"{found['network']}, {attack}: times the fastest other, {nearest['name']}"
        made.append({"what": what, "found": nearest["times"][0], "wanted": times})
    of_peak = statistics.mean(ours) * found["flops_a_gradient"] / reached
    made.append({"what": f"{found['network']}: share of the peak seen", "found": of_peak, "wanted": share})
    return [{**bar, "holds": bar["found"] >= bar["wanted"]} for bar in made]


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str]) -> int:
    """The program on its own, where neither Ray nor anything else of this project's is installed."""
    parser = argparse.ArgumentParser(prog="python -m jobs benchmark", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the JSON")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; as many as a worker has")
    told = parser.parse_args(arguments)
    batch = 8 if told.device == "cpu" else 256
    return run(told.device, told.out, batch=batch, steps=2, rounds=5, threads=told.threads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
