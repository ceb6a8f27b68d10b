"""Runs the sections one after another, writes what each found at once, and prints a table at the end."""

import argparse
import contextlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from jobs.gpu_check import exactness, rates
from jobs.gpu_check.setting import CPU, GPU, Setting
from jobs.gpu_check.success import success
from pipeline.models import device as devices

# Each section and its most seconds on a GPU: seven minutes in all.
SECTIONS: dict[str, tuple[Callable[[Setting], dict[str, Any]], float]] = {
    "environment": (lambda setting: environment(setting), 5),
    "draws": (exactness.draws, 5),
    "attacks": (exactness.attacks, 60),
    "repeats": (exactness.repeats, 70),
    "success": (success, 50),
    "ceiling": (rates.ceiling, 20),
    "rates": (rates.rates, 110),
    "kernels": (rates.kernels, 15),
    "encoding": (rates.encoding, 15),
    "compiled": (rates.compiled, 70),
}


def environment(setting: Setting) -> dict[str, Any]:
    """The device and the versions."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if setting.device.type == "cuda" else platform.processor() or "CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in ("torch", "torchvision", "timm", "pillow", "numpy")},
    }
    if setting.device.type == "cuda":
        found["cuda"] = torch.version.cuda
        cudnn: Any = torch.backends.cudnn
        found["cudnn"] = cudnn.version()
        found["memory in GB"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def run(setting: Setting, out: Path) -> int:
    """Runs all sections; returns 1 if results are not right or a section failed, 0 otherwise, whatever the speed."""
    found: dict[str, Any] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, (section, seconds) in SECTIONS.items():
        started = time.monotonic()
        try:
            found[name] = section(replace(setting, ends=started + seconds))
        except Exception as error:  # the sections after it may be what the device was lent for
            traceback.print_exc()
            found[name] = {"failed": f"{type(error).__name__}: {error}".partition("\n")[0], "holds": False}
        found[name]["seconds"] = round(time.monotonic() - started, 1)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {found[name]['seconds']} s", file=sys.stderr, flush=True)
        with contextlib.suppress(RuntimeError):  # of a device that is broken, each section says so
            rates.free_memory(setting.device)
    found["goals"] = rates.goals([found["rates"], found["compiled"]], found["ceiling"])
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(found)))
    return 0 if all(section.get("holds", True) for section in found.values() if isinstance(section, dict)) else 1


def table(found: dict[str, Any]) -> list[str]:
    """What holds, what is fastest, and what is missing, as lines of Markdown."""
    about = found["environment"]
    title = f"# {about.get('device')}, torch {about.get('versions', {}).get('torch')}"
    lines = [title, "", "| what | found |", "| --- | --- |"]
    for name in ("draws", "attacks", "repeats", "success"):
        section = found[name]
        holds = "holds" if section.get("holds") else "DOES NOT HOLD"
        lines.append(f"| {name} | {section.get('failed') or section.get('not measured') or holds} |")
    for name, detail in _misses(found):
        lines.append(f"| {name} | {detail} |")
    for section in (found["rates"], found["compiled"]):
        for network, batches in section.get("gradients a second", {}).items():
            for batch, by_name in batches.items():
                for key, rate in sorted(by_name.items(), key=_fastest_first):
                    shown = f"{rate:,.1f} gradients/s" if isinstance(rate, float) else rate
                    lines.append(f"| {network}, {batch} images: {key} | {shown} |")
    if "gradients a second" in found["ceiling"]:
        lines.append(f"| convolutions alone, bfloat16 | {found['ceiling']['gradients a second']:,.1f} gradients/s |")
    for kind, share in found["kernels"].get("share", {}).items():
        lines.append(f"| of the device's time: {kind} | {share:.1%} |")
    if "threads" in found["encoding"]:
        beside = found["encoding"]
        lines.append(f"| {beside['threads']} threads encode | {beside['images encoded a second']:,.0f} images/s |")
        lines.append(f"| the device's speed beside them | {beside['speed beside it']:.2f} |")
    for goal in found.get("goals", []):
        verdict = "holds" if goal["holds"] else "MISSED"
        lines.append(f"| {goal['what']} (goal: {goal['wanted']:g}) | {goal['found']:.2f}, {verdict} |")
    return lines


def _fastest_first(measured: tuple[str, float | str]) -> float:
    rate = measured[1]
    return -rate if isinstance(rate, float) else 0.0


def _misses(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What does not hold, in detail, and what has no fixed order."""
    misses = []
    for name, variant in found["attacks"].get("variants", {}).items():
        if variant["differing"] > exactness.MOST_DIFFERING or variant.get("waits in two more steps", 0) > 0:
            misses.append((f"attack {name}", json.dumps(variant)))
    for name, equal in found["repeats"].get("equal", {}).items():
        if not all(equal.values()):
            misses.append((f"same bytes: {name}", json.dumps(equal)))
    for kind, operations in found["repeats"].get("operations without a fixed order", {}).items():
        if operations:
            misses.append((f"no fixed order: {kind}", ", ".join(operations)))
    for name, result in found["success"].get("success", {}).items():
        low, high = result.get("interval", (0, 0))
        misses.append((f"success: {name}", f"{result['fooled']}/{result['pairs']}, gain in [{low:+.2f}, {high:+.2f}]"))
    return misses


def main(arguments: Sequence[str]) -> int:
    """Parses the command line and runs the check."""
    parser = argparse.ArgumentParser(prog="python -m jobs gpu-check", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check.json"), help="file for the JSON")
    parser.add_argument("--assets", type=Path, default=Path("build/demo"), help="folder that make demo prepares")
    parser.add_argument("--digests", action="store_true", help=argparse.SUPPRESS)  # the second process
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was checked")
        return 0
    devices.configure(threads=torch.get_num_threads())
    sizes = GPU if options.device == "cuda" else CPU
    setting = Setting(torch.device(options.device), sizes, options.assets, ends=float("inf"))
    if options.digests:
        print(json.dumps(exactness.digests(setting)))
        return 0
    return run(setting, options.out)
