"""Our attacks against other libraries' on the same model and images; no test, but a program: `make peers`.

Where nothing is drawn, both run in float64 on SqueezeNet 1.1, where rounding does not send two right loops apart, and
every value of the result is compared. Where the two draw different numbers, their success on the same images is, from
EfficientNet-Lite0: a paired interval, over targets that neither attacked. What disagrees is explained in a line, and
the explanation is put to the test: ours with the other's peculiarity built in has to agree with it.

PGN and the look-ahead have no such peer: transferattack 1.1, the only release of TransferAttack on the package index,
holds no code. They are held against transcriptions in tests/attack/test_published.py.
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
from pipeline.models import load
from pipeline.models.load import ModelSpec
from pipeline.plan import recipe
from pipeline.results.intervals import PooledGain

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "peers"
EPSILON, STEPS = Fraction(8, 255), 10
ALPHA = float(EPSILON / STEPS)
EPSILON_L2 = 3.0
# Images for what is compared value by value: float64 is slow.
EXACT = 4

# Maps images (B, 3, H, W) in [0, 1] and labels to adversarial images.
Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """Ours beside another's.

    Attributes:
        attack: What both call it, about.
        peer: Whose.
        ours: Our attack, set as theirs.
        theirs: Theirs.
        drawn: Whether random numbers differ, so that only success can be compared.
        explained: Why the two differ, in a line; empty where they are to agree.
        emulated: Ours with that peculiarity, which has to agree.
    """

    attack: str
    peer: str
    ours: Run
    theirs: Run
    drawn: bool = False
    explained: str = ""
    emulated: Run | None = None


def ours(combination: str, **parts: Any) -> Run:
    """Our attack at the budget of this comparison."""
    return _keyed(build(combination, epsilon=EPSILON, steps=STEPS, parts=parts))


def _keyed(attack: Attack) -> Run:
    return lambda model, images, labels: attack(model, images, labels, [str(index) for index in range(len(images))])


class _Contiguous(nn.Module):
    """A model whose gradients lie in memory as torchattacks' `view` wants them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()  # torchattacks puts a model back into the mode that it found, and its parts with it

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient.contiguous())  # type: ignore[no-untyped-call]
        logits: Tensor = self.model(images)
        return logits


def pairs() -> list[Pair]:
    """What is compared."""
    torchattack, torchattacks = (importlib.import_module(name) for name in ("torchattack", "torchattacks"))

    def many(name: str, **settings: Any) -> Run:
        def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            budget = {"eps": float(EPSILON), "alpha": ALPHA, "steps": STEPS}
            attack = getattr(torchattacks, name)(_Contiguous(model), **{**budget, **settings})
            if hasattr(attack, "stacked_kernel"):
                attack.stacked_kernel = attack.stacked_kernel.to(images)
            made: Tensor = attack(images, labels)
            return made

        return run

    def one(name: str, **settings: Any) -> Run:
        def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            budget = {"eps": float(EPSILON), "steps": STEPS}
            attack = getattr(torchattack, name)(model, device=images.device, **{**budget, **settings})
            if hasattr(attack, "get_kernel"):
                kernel = attack.get_kernel().to(images)
                attack.get_kernel = lambda: kernel
            made: Tensor = attack(images, labels)
            return made.detach()

        return run

    di, vt = DiverseInput(rate=0.9), VarianceTuning(samples=5)
    forgets = "its momentum holds the last gradient instead of all before it"
    in_l2 = _keyed(build("i", epsilon=Fraction(EPSILON_L2), steps=STEPS, norm="l2"))
    still = {"random_start": False}
    return [
        Pair("I-FGSM", "torchattacks", ours("i"), many("PGD", **still)),
        Pair("I-FGSM", "torchattack", ours("i"), one("PGD", **still)),
        Pair("PGD in L2", "torchattacks", in_l2, many("PGDL2", eps=EPSILON_L2, alpha=EPSILON_L2 / STEPS, **still)),
        Pair("PGD in L2", "torchattack", in_l2, one("PGDL2", eps=EPSILON_L2, **still)),
        Pair("MI-FGSM", "torchattacks", ours("mi"), many("MIFGSM")),
        Pair("MI-FGSM", "torchattack", ours("mi"), one("MIFGSM")),
        Pair("NI-FGSM", "torchattacks", ours("ni"), many("NIFGSM")),
        Pair("NI-FGSM", "torchattack", ours("ni"), one("NIFGSM"), explained=forgets, emulated=forgetful_ni(copies=1)),
        Pair("SI-NI-FGSM", "torchattacks", ours("si+ni", si=Scale(copies=5)), many("SINIFGSM", m=5)),
        Pair(
            "SI-NI-FGSM",
            "torchattack",
            ours("si+ni", si=Scale(copies=3)),
            one("SINIFGSM", m=3),
            explained=f"{forgets}; and it adds up gradients that already hold those of the copies before",
            emulated=forgetful_ni(copies=3),
        ),
        Pair("TI-MI-FGSM", "torchattacks", ours("mi+ti"), many("TIFGSM", decay=1.0, diversity_prob=0.0)),
        Pair(
            "TI-MI-FGSM",
            "torchattack",
            ours("mi+ti"),
            one("TIFGSM"),
            explained=f"{forgets}; and its kernel is the square root of a Gaussian's integral over pixels",
            emulated=forgetful_ti,
        ),
        Pair("DI-FGSM", "torchattacks", ours("di+i", di=di), many("DIFGSM"), drawn=True),
        Pair("DI-MI-FGSM", "torchattacks", ours("di+mi", di=di), many("DIFGSM", decay=1.0), drawn=True),
        Pair("DI-MI-FGSM", "torchattack", ours("di+mi", di=di), one("DIFGSM", diversity_prob=0.5), drawn=True),
        Pair("VMI-FGSM", "torchattacks", ours("mi+vt", vt=vt), many("VMIFGSM"), drawn=True),
        Pair("VMI-FGSM", "torchattack", ours("mi+vt", vt=vt), one("VMIFGSM"), drawn=True),
        Pair("VNI-FGSM", "torchattacks", ours("ni+vt", vt=vt), many("VNIFGSM"), drawn=True),
    ]


def forgetful_ni(*, copies: int) -> Run:
    """torchattack's NI- and SI-NI-FGSM, as its code reads."""

    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        adversarial, velocity = images.clone(), torch.zeros_like(images)
        for _ in range(STEPS):
            point = adversarial + ALPHA * velocity
            total, held = torch.zeros_like(images), torch.zeros_like(images)
            for copy in range(copies):
                inputs = (point / 2**copy).detach().requires_grad_()
                (found,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
                held = held + found / 2**copy
                total = total + held
            total = total / copies
            velocity = total + total / total.abs().mean(dim=(1, 2, 3), keepdim=True)
            adversarial = _stepped(adversarial, images, velocity)
        return adversarial

    return run


def forgetful_ti(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """torchattack's TI-FGSM, as its code reads."""
    width = 7 / 15
    edges = np.linspace(-3 - width / 2, 3 + width / 2, 16)
    line = np.diff(norm.cdf(edges))
    square = np.sqrt(np.outer(line, line))
    kernel = torch.from_numpy((square / square.sum()).astype(np.float32)).to(images).expand(3, 1, 15, 15)
    adversarial = images.clone()
    for _ in range(STEPS):
        inputs = adversarial.detach().requires_grad_()
        (found,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
        adversarial = _stepped(adversarial, images, F.conv2d(found, kernel, padding=7, groups=3))
    return adversarial


def _stepped(adversarial: Tensor, images: Tensor, velocity: Tensor) -> Tensor:
    change = (adversarial + ALPHA * velocity.sign() - images).clamp(-float(EPSILON), float(EPSILON))
    return (images + change).clamp(0, 1)


def exactly(pair: Pair, model: nn.Module, images: Images) -> dict[str, Any]:
    """Value by value, in float64."""
    pixels = codec.to_float(images.pixels[:EXACT]).double()
    labels = images.labels[:EXACT]
    other = pair.theirs(model, pixels, labels)
    mine = (pair.emulated or pair.ours)(model, pixels, labels)
    plain = mine if pair.emulated is None else pair.ours(model, pixels, labels)
    share = float(((mine - other).abs() < 1e-9).double().mean())
    return {
        "compared": f"{EXACT} images, float64, every value",
        "found": f"{share:.4%} equal"
        + ("" if pair.emulated is None else " to ours with that built in")
        + ("" if pair.emulated is None else f"; {float(((plain - other).abs() < 1e-9).double().mean()):.0%} to ours"),
        "agree": share > 0.9999,
    }


def by_success(pair: Pair, model: nn.Module, targets: Mapping[str, nn.Module], images: Images) -> dict[str, Any]:
    """By whom the images fool, among those that the target classifies correctly; targets together."""
    pixels = codec.to_float(images.pixels)
    torch.manual_seed(0)  # theirs draw from the global generator
    made = [
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
            clean, mine, other = (target(codec.to_float(each)).argmax(dim=1) for each in (images.pixels, *made))
        right = clean == images.labels
        won += ((mine != images.labels) & right).numpy()
        lost += ((other != images.labels) & right).numpy()
        counted += right.numpy()
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
    """Fetches the other libraries, for these comparisons alone."""
    if not (OUT / "torchattacks").is_dir():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--target",
            str(OUT),
        ]
        subprocess.run([*command, "-r", str(Path(__file__).with_name("peers.txt"))], check=True)


def main() -> int:
    """Compares everything; exit code 1 where something disagrees and is not explained."""
    fetch()
    sys.path.insert(0, str(OUT))
    torch.set_num_threads(1)
    assets.prepare(ROOT / "build" / "demo")
    job = recipe.load(ROOT / "jobs" / "recipes" / "demo.toml").job()
    (spec,) = (each for each in job.sources if isinstance(each, ModelSpec))
    source, images = load.load(spec), first_images(job.data, 20)
    targets = {each.name: load.load(each) for each in job.targets if each.name != spec.name}
    # Depthwise convolutions have no fast path in float64 on a CPU; SqueezeNet has none.
    dense = next(each for each in job.targets if "squeezenet" in each.model)
    double = load.load(dense).double()
    console, rows = Console(width=160), []
    for pair in pairs():
        found = by_success(pair, source, targets, images) if pair.drawn else exactly(pair, double, images)
        row = {"attack": pair.attack, "peer": pair.peer, **found, "explained": pair.explained}
        console.print(row, highlight=False)
        rows.append(row)
    title = f"{dense.name} value by value, {spec.name} by success, ε = {EPSILON}, T = {STEPS}, α = ε/T"
    table = Table(title=title, title_justify="left")
    for name in ("attack", "peer", "compared", "found", "why they differ"):
        table.add_column(name, overflow="fold")
    for row in rows:
        agreed = "" if row["agree"] else "[bold red]DISAGREE: [/bold red]"
        table.add_row(row["attack"], row["peer"], row["compared"], f"{agreed}{row['found']}", row["explained"])
    console.print(table)
    (OUT / "peers.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["agree"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
