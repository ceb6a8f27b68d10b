"""`python -m jobs benchmark`: gradients per second of our attacks and of other implementations; needs torch and timm.

All implementations attack the same images in the same number of steps, in turns, round after round in one process, and
ratios are taken within a round. Compared are a plain loop and those of the other libraries that are installed.
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

from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.precision import Precision
from pipeline.attack.recipe import build
from pipeline.models import malloc
from pipeline.models.classifier import Classifier
from pipeline.models.onednn_convolution import has_onednn_routines

NETWORKS = ("resnet50", "tf_efficientnet_lite0")
EPSILON, R, BETA = Fraction(8, 255), 0.01, 0.8
# Goals: speed-up over the fastest other implementation, and share of the device's peak.
GOALS = {"cpu": (1.4, 0.6), "cuda": (4.0, 0.4)}

# The implementation that the goals apply to.
OURS = {"cpu": "ours", "cuda": "ours, bfloat16"}

# Maps images and labels to adversarial images.
Run = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Implementation:
    """An implementation of an attack.

    Attributes:
        attack: Name of the attack.
        name: Name of the implementation; `ours` is this project's, in float32 unless stated.
        run: Attacks images (B, 3, 224, 224) float32 in [0, 1].
        gradients: Gradients per image.
    """

    attack: str
    name: str
    run: Run
    gradients: int


@dataclass(frozen=True)
class Rate:
    """Measured rate of an implementation, over the rounds.

    Attributes:
        network: Name of the attacked network.
        attack: Name of the attack.
        name: Name of the implementation.
        gradients_per_s: Image gradients per second: median, minimum and maximum.
        times: Speed-up of ours over this implementation in the same round: median, minimum and maximum.
    """

    network: str
    attack: str
    name: str
    gradients_per_s: tuple[float, float, float]
    times: tuple[float, float, float]


class PlainModel(nn.Module):
    """A network as timm creates it, with a normalisation layer before it."""

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


def implementations(plain: PlainModel, fast: nn.Module, steps: int) -> list[Implementation]:
    """All implementations of MI-FGSM, and of MI-FGSM with what TransferAttack calls GNP (the look-ahead)."""
    alpha = float(EPSILON / steps)
    budget: dict[str, Any] = {"eps": float(EPSILON), "steps": steps}
    penalty = GradientNormPenalty(form="look-ahead", norm="mean-abs", r=R, beta=BETA)

    def ours(combination: str, precision: Precision) -> Run:
        parts = {"gnp": penalty} if "gnp" in combination else {}
        attack = build(combination, epsilon=EPSILON, steps=steps, parts=parts, precision=precision)
        return lambda images, labels: attack(fast, images, labels, [str(index) for index in range(len(images))])

    compared = [
        Implementation("MI-FGSM", "ours", ours("mi", "float32"), steps),
        Implementation("look-ahead", "ours", ours("gnp+mi", "float32"), 2 * steps),
        Implementation(
            "MI-FGSM", "plain loop", lambda *batch: plain_loop(plain, *batch, steps=steps, look_ahead=False), steps
        ),
        Implementation(
            "look-ahead",
            "TransferAttack's loop",
            lambda *batch: plain_loop(plain, *batch, steps=steps, look_ahead=True),
            2 * steps,
        ),
    ]
    if plain.mean.is_cuda or has_onednn_routines(torch.bfloat16):
        compared.append(Implementation("MI-FGSM", "ours, bfloat16", ours("mi", "bfloat16"), steps))
        compared.append(Implementation("look-ahead", "ours, bfloat16", ours("gnp+mi", "bfloat16"), 2 * steps))
    if importlib.util.find_spec("torchattacks"):
        torchattacks = importlib.import_module("torchattacks").MIFGSM(plain, alpha=alpha, **budget)
        compared.append(Implementation("MI-FGSM", "torchattacks", torchattacks, steps))
    if importlib.util.find_spec("torchattack"):
        torchattack = importlib.import_module("torchattack").MIFGSM(
            plain, device=plain.mean.device, alpha=alpha, **budget
        )
        compared.append(Implementation("MI-FGSM", "torchattack", torchattack, steps))
    return compared


def plain_loop(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, look_ahead: bool) -> Tensor:
    """MI-FGSM in its usual form; with the look-ahead, a transcription of TransferAttack's class GNP."""
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


def elapsed_s(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, including its work on the device."""
    _wait(device)
    started = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - started


def peak_flops(device: torch.device) -> dict[str, float]:
    """Measured floating-point operations per second of a matrix product and of a 3 × 3 convolution of ResNet-50.

    The best of twenty tries, in float32 on a CPU and in bfloat16 on a GPU.
    """
    side, batch, dtype = (2048, 8, torch.float32) if device.type == "cpu" else (8192, 256, torch.bfloat16)
    left, right = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    images = torch.rand(batch, 256, 14, 14, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.rand(256, 256, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    product = min(elapsed_s(lambda: left @ right, device) for _ in range(20))
    convolution = min(elapsed_s(lambda: F.conv2d(images, kernel, padding=1), device) for _ in range(20))
    return {"product": 2 * side**3 / product, "convolution": 2 * batch * 14 * 14 * 256 * 256 * 9 / convolution}


def measure(name: str, device: torch.device, *, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Rates of all implementations on one network, with random weights, which cost the same as trained ones."""
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    config = timm.data.resolve_model_data_config(network)
    plain = PlainModel(copy.deepcopy(network), config["mean"], config["std"]).to(device)
    preprocessing = {key: config[key] for key in ("mean", "std", "interpolation")}
    fast = Classifier(network, {**preprocessing, "policy": "direct", "input_size": 224}).optimize_for(device)
    images, labels = torch.rand(batch, 3, 224, 224, device=device), torch.zeros(batch, dtype=torch.long, device=device)
    # Counted on the plain network: the counter does not know the operations of the fast one.
    with FlopCounterMode(display=False) as counter:
        frozen = copy.deepcopy(plain).requires_grad_(False)  # no implementation computes gradients of weights
        F.cross_entropy(frozen(images[:1].clone().requires_grad_()), labels[:1]).backward()  # type: ignore[no-untyped-call]
    compared = implementations(plain, fast, steps)
    seconds: dict[Implementation, list[float]] = {implementation: [] for implementation in compared}
    for _ in range(rounds):
        for is_ours, configure_malloc in ((True, malloc.keep_freed_memory), (False, malloc.restore_defaults)):
            configure_malloc()
            group = [side for side in compared if side.name.startswith("ours") == is_ours]
            group[0].run(images, labels)  # warms up: none pays for the heap and caches that the others left
            for side in group:
                seconds[side].append(elapsed_s(partial(side.run, images, labels), device) / side.gradients)
    ours = {side.attack: times for side, times in seconds.items() if side.name == OURS[device.type]}
    rates = [
        Rate(
            name,
            side.attack,
            side.name,
            _spread([batch / time_s for time_s in times]),
            _spread([time_s / our_s for time_s, our_s in zip(times, ours[side.attack], strict=True)]),
        )
        for side, times in seconds.items()
    ]
    return {"network": name, "flops_a_gradient": counter.get_total_flops(), "rates": [asdict(rate) for rate in rates]}


def run(device: str, out: Path, *, batch: int, steps: int, rounds: int, threads: int) -> int:
    """Measures all networks, prints a table and writes JSON; returns exit code 1 where a goal is missed."""
    if device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 0
    torch.set_num_threads(threads)
    torch_device = torch.device(device)
    device_name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} threads"
    peak = peak_flops(torch_device)
    networks = [measure(name, torch_device, batch=batch, steps=steps, rounds=rounds) for name in NETWORKS]
    goals = [goal for network in networks for goal in check_goals(network, max(peak.values()), device)]
    print(f"{device_name}, torch {torch.__version__}: batches of {batch}, {steps} steps, {rounds} rounds")
    print(f"peak seen: {peak['product'] / 1e9:.0f} GFLOP/s in products, {peak['convolution'] / 1e9:.0f} in conv.")
    row = "{:24}{:12}{:24}{:>12}{:>20}{:>8}{:>14}"
    print(row.format("network", "attack", "by", "gradients/s", "least … most", "ours ×", "least … most"))
    for rate in (rate for network in networks for rate in network["rates"]):
        middle, least, most = rate["gradients_per_s"]
        times, fewest, largest = rate["times"]
        columns = f"{middle:.2f}", f"{least:.2f} … {most:.2f}", f"{times:.2f}", f"{fewest:.2f} … {largest:.2f}"
        print(row.format(rate["network"], rate["attack"], rate["name"], *columns))
    for goal in goals:
        verdict = "holds " if goal["holds"] else "MISSED"
        print(f"{verdict}  {goal['what']}: {goal['found']:.2f}, wanted {goal['wanted']:g}")
    out.mkdir(parents=True, exist_ok=True)
    report = {"device": device_name, "torch": torch.__version__, "peak": peak, "networks": networks, "bars": goals}
    (out / f"gradients-{device}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(goal["holds"] for goal in goals) else 1


def check_goals(network: dict[str, Any], peak: float, device: str) -> list[dict[str, Any]]:
    """The goals for one network, the values that were measured, and whether each goal is met."""
    times, share = GOALS[device]
    rates = network["rates"]
    ours = [rate["gradients_per_s"][0] for rate in rates if rate["name"] == OURS[device]]
    goals: list[dict[str, Any]] = []
    for attack in ("MI-FGSM", "look-ahead"):
        others = [rate for rate in rates if rate["attack"] == attack and not rate["name"].startswith("ours")]
        fastest = min(others, key=lambda rate: float(rate["times"][0]))
        what = f"{network['network']}, {attack}: times the fastest other, {fastest['name']}"
        goals.append({"what": what, "found": fastest["times"][0], "wanted": times})
    share_of_peak = statistics.mean(ours) * network["flops_a_gradient"] / peak
    goals.append({"what": f"{network['network']}: share of the peak seen", "found": share_of_peak, "wanted": share})
    return [{**goal, "holds": goal["found"] >= goal["wanted"]} for goal in goals]


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str]) -> int:
    """Parses the command line and runs the benchmark; needs neither Ray nor typer."""
    parser = argparse.ArgumentParser(prog="python -m jobs benchmark", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the JSON")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; use as many as a worker has")
    options = parser.parse_args(arguments)
    batch = 8 if options.device == "cpu" else 256
    return run(options.device, options.out, batch=batch, steps=2, rounds=5, threads=options.threads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
