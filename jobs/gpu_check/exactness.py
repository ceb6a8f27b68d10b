"""Whether a device draws and computes what the CPU does, waits for the host in no step, and repeats its bytes."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any, get_args

import torch
from torch import Tensor

from jobs.gpu_check.setting import Setting
from jobs.gpu_check.variants import variants
from pipeline.attack.batch import AdmixPool
from pipeline.attack.draws import Draws
from pipeline.attack.ensemble import Ensemble, Fuse
from pipeline.attack.gradient_norm_penalty import GradientNormPenalty
from pipeline.attack.loop import Iterative
from pipeline.attack.precision import Precision
from pipeline.attack.recipe import Attack, build
from pipeline.data import codec
from pipeline.models.device import nondeterministic_operations

CPU = torch.device("cpu")
# Signs of a gradient near zero depend on the last bit; more than this share of other pixels is another attack.
MOST_DIFFERING = 0.05


def draws(setting: Setting) -> dict[str, Any]:
    """Random numbers on the device and on the CPU: bit for bit, but for the last bits of normal ones."""
    here, there = (Draws(7, ["a", "b", "c"], device) for device in (setting.device, CPU))
    equal = {}
    draw: dict[str, Callable[[Draws], Tensor]] = {
        "uniform": lambda some: some.uniform(3, 64, 64),
        "signs": lambda some: some.signs(3, 64, 64),
        "below": lambda some: some.below(1000, 64),
        "shared": lambda some: some.shared("admix 0"),
    }
    for name, drawn in draw.items():
        equal[name] = bool(torch.equal(drawn(here).cpu(), drawn(there)))
    apart = float((here.normal(3, 64, 64).cpu() - there.normal(3, 64, 64)).abs().max())
    return {"equal": equal, "normal numbers apart": apart, "holds": all(equal.values()) and apart < 1e-5}


def attacks(setting: Setting) -> dict[str, Any]:
    """Every kind of attack on a tiny network, in float32: pixels beside the CPU's, and waits in a step."""
    on_cpu = replace(setting, device=CPU)
    classifiers = {place.device: place.classifier("test_efficientnet", 48) for place in (setting, on_cpu)}

    def attacked(place: Setting, attack: Attack, fuse: Fuse | None) -> Tensor:
        classifier = classifiers[place.device]
        source = classifier if fuse is None else Ensemble([classifier] * 2, fuse)
        pixels, labels, keys = place.images(3, 64)
        images, pool = codec.to_float(pixels), AdmixPool(pixels, labels)
        aims = attack.target_classes(source, images, labels, keys)
        adversarial = attack(source, images, labels, keys, target_classes=aims, pool=pool)
        return codec.quantise(adversarial, pixels, attack.epsilon, attack.norm).cpu()

    found: dict[str, Any] = {}
    for name, (attack, fuse) in variants().items():
        if not setting.has_time:
            break
        differing = float((attacked(setting, attack, fuse) != attacked(on_cpu, attack, fuse)).double().mean())
        found[name] = {"differing": differing}
        if isinstance(attack, Iterative) and setting.device.type == "cuda":
            waits = [_waits(setting, replace(attack, steps=steps), fuse, attacked) for steps in (2, 4)]
            found[name]["waits in two more steps"] = waits[1] - waits[0]
    holds = len(found) == len(variants()) and all(
        variant["differing"] <= MOST_DIFFERING and variant.get("waits in two more steps", 0) <= 0
        for variant in found.values()
    )
    return {"variants": found, "holds": holds}


def _waits(setting: Setting, attack: Attack, fuse: Fuse | None, attacked: Any) -> int:
    """How often the host waits for the device during an attack."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            attacked(setting, attack, fuse)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def repeats(setting: Setting) -> dict[str, Any]:
    """Whether a second run and a second process give the same bytes, by kind of source and precision."""
    first, second = digests(setting), digests(setting)
    command = [sys.executable, "-m", "jobs", "gpu-check", "--device", setting.device.type, "--digests"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=150)
        third = json.loads(done.stdout.splitlines()[-1])
    except subprocess.SubprocessError as error:  # what it wrote is in ours
        print(error, file=sys.stderr)
        third = {}
    found = {
        name: {"twice": second[name] == digest, "in a second process": third.get(name) == digest}
        for name, digest in first.items()
    }
    images = codec.to_float(setting.images(1)[0])
    kinds = {
        kind: nondeterministic_operations(setting.classifier(*source), images)
        for kind, source in setting.sizes.repeated.items()
    }
    holds = all(all(each.values()) for each in found.values())
    return {"equal": found, "operations without a fixed order": kinds, "holds": holds}


def digests(setting: Setting) -> dict[str, str]:
    """sha256 of the adversarial pixels of the penalised attack, by kind of source and precision."""
    penalty = GradientNormPenalty(form="backward", norm="mean-abs")
    found = {}
    for kind, source in setting.sizes.repeated.items():
        classifier = setting.classifier(*source)
        pixels, labels, keys = setting.images(8 if setting.device.type == "cuda" else 2)
        for precision in get_args(Precision):
            attack = build("gnp+mi+di", epsilon=Fraction(8, 255), steps=3, precision=precision, parts={"gnp": penalty})
            adversarial = attack(classifier, codec.to_float(pixels), labels, keys)
            stored = codec.quantise(adversarial, pixels, attack.epsilon)
            found[f"{kind}, {precision}"] = codec.pixels_sha256(stored.cpu())
    return found
