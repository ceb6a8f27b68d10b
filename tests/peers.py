"""`make peers`: compares our attacks with other libraries', on the same model and images; a program, not a test.

Without random numbers, both run in float64 on SqueezeNet 1.1, where rounding does not separate two correct loops, and
every value of the result is compared. With random numbers, success on the same images is compared by a paired interval,
with EfficientNet-Lite0 as the source and targets that neither attacked. Each difference is explained in a line, and the
explanation is tested: our attack with the other library's deviation must agree with the other library.

PGN and the look-ahead have no counterpart: transferattack 1.1, the only release of TransferAttack on the package index,
has no code. They are compared with transcriptions in tests/attack/test_published.py.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.demo import assets
from jobs.runners.curvature import first_images
from pipeline.attack.gradient_transforms import VarianceTuning
from pipeline.attack.input_transforms import DiverseInput, Scale
from pipeline.attack.recipe import Attack, build
from pipeline.data import codec
from pipeline.data.parts import Images
from pipeline.models.load import load_model
from pipeline.models.spec import ModelSpec
from pipeline.plan.recipe_reader import load_recipe
from pipeline.results.intervals import PooledGain

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "peers"
EPSILON, STEPS = Fraction(8, 255), 10
ALPHA = float(EPSILON / STEPS)
EPSILON_L2 = 3.0
# Images for comparisons value by value: float64 is slow.
EXACT = 4

# Maps a model, images (B, 3, H, W) in [0, 1] and labels to adversarial images.
Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """Our implementation of an attack and another library's.

    Attributes:
        attack: Name of the attack.
        peer: Name of the other library.
        ours: Our attack, with the other library's settings.
        theirs: The other library's attack.
        drawn: Whether random numbers differ, so that only success can be compared.
        explained: Why the two differ, in a line; empty where they must agree.
        emulated: Our attack with that deviation, which must agree.
    """

    attack: str
    peer: str
    ours: Run
    theirs: Run
    drawn: bool = False
    explained: str = ""
    emulated: Run | None = None


def ours(combination: str, **parts: Any) -> Run:
    """Our attack with the budget of this comparison."""
    return _keyed(build(combination, epsilon=EPSILON, steps=STEPS, parts=parts))


def _keyed(attack: Attack) -> Run:
    return lambda model, images, labels: attack(model, images, labels, [str(index) for index in range(len(images))])


class _ContiguousGradients(nn.Module):
    """A model with contiguous gradients, which `view` in torchattacks requires."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()  # torchattacks restores the mode of the whole model after an attack

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient.contiguous())  # type: ignore[no-untyped-call]
        logits: Tensor = self.model(images)
        return logits


def pairs() -> list[Pair]:
    """All comparisons."""
    torchattack, torchattacks = (importlib.import_module(name) for name in ("torchattack", "torchattacks"))

    def torchattacks_run(name: str, **settings: Any) -> Run:
        def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            budget = {"eps": float(EPSILON), "alpha": ALPHA, "steps": STEPS}
            attack = getattr(torchattacks, name)(_ContiguousGradients(model), **{**budget, **settings})
            if hasattr(attack, "stacked_kernel"):
                attack.stacked_kernel = attack.stacked_kernel.to(images)
            adversarial: Tensor = attack(images, labels)
            return adversarial

        return run

    def torchattack_run(name: str, **settings: Any) -> Run:
        def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            budget = {"eps": float(EPSILON), "steps": STEPS}
            attack = getattr(torchattack, name)(model, device=images.device, **{**budget, **settings})
            if hasattr(attack, "get_kernel"):
                kernel = attack.get_kernel().to(images)
                attack.get_kernel = lambda: kernel
            adversarial: Tensor = attack(images, labels)
            return adversarial.detach()

        return run

    di, vt = DiverseInput(rate=0.9), VarianceTuning(samples=5)
    no_momentum = "its momentum holds the last gradient instead of all before it"
    in_l2 = _keyed(build("i", epsilon=Fraction(EPSILON_L2), steps=STEPS, norm="l2"))
    from_images = {"random_start": False}
    return [
        Pair("I-FGSM", "torchattacks", ours("i"), torchattacks_run("PGD", **from_images)),
        Pair("I-FGSM", "torchattack", ours("i"), torchattack_run("PGD", **from_images)),
        Pair(
            "PGD in L2",
            "torchattacks",
            in_l2,
            torchattacks_run("PGDL2", eps=EPSILON_L2, alpha=EPSILON_L2 / STEPS, **from_images),
        ),
        Pair("PGD in L2", "torchattack", in_l2, torchattack_run("PGDL2", eps=EPSILON_L2, **from_images)),
        Pair("MI-FGSM", "torchattacks", ours("mi"), torchattacks_run("MIFGSM")),
        Pair("MI-FGSM", "torchattack", ours("mi"), torchattack_run("MIFGSM")),
        Pair("NI-FGSM", "torchattacks", ours("ni"), torchattacks_run("NIFGSM")),
        Pair(
            "NI-FGSM",
            "torchattack",
            ours("ni"),
            torchattack_run("NIFGSM"),
            explained=no_momentum,
            emulated=ni_without_momentum(copies=1),
        ),
        Pair("SI-NI-FGSM", "torchattacks", ours("si+ni", si=Scale(copies=5)), torchattacks_run("SINIFGSM", m=5)),
        Pair(
            "SI-NI-FGSM",
            "torchattack",
            ours("si+ni", si=Scale(copies=3)),
            torchattack_run("SINIFGSM", m=3),
            explained=f"{no_momentum}; and it adds up gradients that already hold those of the copies before",
            emulated=ni_without_momentum(copies=3),
        ),
        Pair("TI-MI-FGSM", "torchattacks", ours("mi+ti"), torchattacks_run("TIFGSM", decay=1.0, diversity_prob=0.0)),
        Pair(
            "TI-MI-FGSM",
            "torchattack",
            ours("mi+ti"),
            torchattack_run("TIFGSM"),
            explained=f"{no_momentum}; and its kernel is the square root of a Gaussian's integral over pixels",
            emulated=ti_without_momentum,
        ),
        Pair("DI-FGSM", "torchattacks", ours("di+i", di=di), torchattacks_run("DIFGSM"), drawn=True),
        Pair("DI-MI-FGSM", "torchattacks", ours("di+mi", di=di), torchattacks_run("DIFGSM", decay=1.0), drawn=True),
        Pair(
            "DI-MI-FGSM", "torchattack", ours("di+mi", di=di), torchattack_run("DIFGSM", diversity_prob=0.5), drawn=True
        ),
        Pair("VMI-FGSM", "torchattacks", ours("mi+vt", vt=vt), torchattacks_run("VMIFGSM"), drawn=True),
        Pair("VMI-FGSM", "torchattack", ours("mi+vt", vt=vt), torchattack_run("VMIFGSM"), drawn=True),
        Pair("VNI-FGSM", "torchattacks", ours("ni+vt", vt=vt), torchattacks_run("VNIFGSM"), drawn=True),
    ]


def ni_without_momentum(*, copies: int) -> Run:
    """Transcription of torchattack's NI- and SI-NI-FGSM."""

    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        adversarial, velocity = images.clone(), torch.zeros_like(images)
        for _ in range(STEPS):
            point = adversarial + ALPHA * velocity
            total = torch.zeros_like(images)
            running_sum = torch.zeros_like(images)
            for copy in range(copies):
                inputs = (point / 2**copy).detach().requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
                running_sum = running_sum + gradient / 2**copy
                total = total + running_sum
            total = total / copies
            velocity = total + total / total.abs().mean(dim=(1, 2, 3), keepdim=True)
            adversarial = _stepped(adversarial, images, velocity)
        return adversarial

    return run


def ti_without_momentum(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Transcription of torchattack's TI-FGSM."""
    width = 7 / 15
    edges = np.linspace(-3 - width / 2, 3 + width / 2, 16)
    line = np.diff(norm.cdf(edges))
    square = np.sqrt(np.outer(line, line))
    kernel = torch.from_numpy((square / square.sum()).astype(np.float32)).to(images).expand(3, 1, 15, 15)
    adversarial = images.clone()
    for _ in range(STEPS):
        inputs = adversarial.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
        adversarial = _stepped(adversarial, images, F.conv2d(gradient, kernel, padding=7, groups=3))
    return adversarial


def _stepped(adversarial: Tensor, images: Tensor, velocity: Tensor) -> Tensor:
    change = (adversarial + ALPHA * velocity.sign() - images).clamp(-float(EPSILON), float(EPSILON))
    return (images + change).clamp(0, 1)


def compare_values(pair: Pair, model: nn.Module, images: Images) -> dict[str, Any]:
    """Compares every value of the adversarial images, in float64."""
    pixels = codec.to_float(images.pixels[:EXACT]).double()
    labels = images.labels[:EXACT]
    theirs = pair.theirs(model, pixels, labels)
    expected = (pair.emulated or pair.ours)(model, pixels, labels)
    share = _share_equal(expected, theirs)
    result = f"{share:.4%} equal"
    if pair.emulated is not None:
        ours = pair.ours(model, pixels, labels)
        result += f" to ours with that deviation; {_share_equal(ours, theirs):.0%} to ours"
    return {
        "compared": f"{EXACT} images, float64, every value",
        "found": result,
        "agree": share > 0.9999,
    }


def _share_equal(one: Tensor, other: Tensor) -> float:
    return float(((one - other).abs() < 1e-9).double().mean())


def compare_success(pair: Pair, model: nn.Module, targets: Mapping[str, nn.Module], images: Images) -> dict[str, Any]:
    """Compares success over all targets, on images that the target classifies correctly when clean."""
    pixels = codec.to_float(images.pixels)
    torch.manual_seed(0)  # the other libraries draw from the global generator
    adversarial = [
        torch.cat(
            [
                codec.quantise(run(model, some, labels), whole, EPSILON)
                for some, labels, whole in _batches(pixels, images)
            ]
        )
        for run in (pair.ours, pair.theirs)
    ]
    won, lost, counted = (np.zeros(len(pixels), int) for _ in range(3))
    for target in targets.values():
        with torch.inference_mode():
            clean, ours, theirs = (
                target(codec.to_float(batch)).argmax(dim=1) for batch in (images.pixels, *adversarial)
            )
        correct = clean == images.labels
        won += ((ours != images.labels) & correct).numpy()
        lost += ((theirs != images.labels) & correct).numpy()
        counted += correct.numpy()
    low, high = PooledGain.over(won - lost, counted).interval or (0.0, 0.0)
    return {
        "compared": f"success on {len(targets)} targets, paired, interval over images",
        "found": f"{won.sum()} and {lost.sum()} of {counted.sum()}; {low:+.0%} … {high:+.0%}",
        "agree": low <= 0 <= high,
    }


def _batches(pixels: Tensor, images: Images) -> list[tuple[Tensor, Tensor, Tensor]]:
    size = 10
    return list(
        zip(torch.split(pixels, size), torch.split(images.labels, size), torch.split(images.pixels, size), strict=True)
    )


def fetch() -> None:
    """Installs the other libraries into a folder of this program."""
    if not (OUT / "torchattacks").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        requirements = str(Path(__file__).with_name("peers.txt"))
        subprocess.run([*command, "--target", str(OUT), "-r", requirements], check=True)


def main() -> int:
    """Runs all comparisons; returns exit code 1 if an unexplained difference is found."""
    fetch()
    sys.path.insert(0, str(OUT))
    torch.set_num_threads(1)
    assets.prepare(ROOT / "build" / "demo")
    job = load_recipe(ROOT / "jobs" / "recipes" / "demo.toml").job()
    (spec,) = (source for source in job.sources if isinstance(source, ModelSpec))
    source, images = load_model(spec), first_images(job.data, 20)
    targets = {target.name: load_model(target) for target in job.targets if target.name != spec.name}
    # SqueezeNet has no depthwise convolutions, which are slow in float64 on a CPU.
    dense = next(target for target in job.targets if "squeezenet" in target.model)
    double = load_model(dense).double()
    console = Console(width=160)
    rows = []
    for pair in pairs():
        result = compare_success(pair, source, targets, images) if pair.drawn else compare_values(pair, double, images)
        row = {"attack": pair.attack, "peer": pair.peer, **result, "explained": pair.explained}
        console.print(row, highlight=False)
        rows.append(row)
    title = f"{dense.name} value by value, {spec.name} by success, ε = {EPSILON}, T = {STEPS}, α = ε/T"
    table = Table(title=title, title_justify="left")
    for name in ("attack", "peer", "compared", "found", "why they differ"):
        table.add_column(name, overflow="fold")
    for row in rows:
        verdict = "" if row["agree"] else "[bold red]DISAGREE: [/bold red]"
        table.add_row(row["attack"], row["peer"], row["compared"], f"{verdict}{row['found']}", row["explained"])
    console.print(table)
    (OUT / "peers.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["agree"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
