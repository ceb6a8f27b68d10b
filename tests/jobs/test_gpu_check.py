"""`gpu-check` goes through all its sections on a CPU, in small, where nothing of a run is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.gpu_check import check, rates
from jobs.gpu_check.exactness import MOST_DIFFERING
from tests.conftest import ROOT

# What a machine that is lent for an hour need not have.
ABSENT = ("ray", "pydantic", "obstore", "webdataset", "boto3", "rich", "typer")
WITHOUT = f"""
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = ["jobs", *sys.argv[1:]]
runpy.run_module("jobs", run_name="__main__")
"""


def test_every_section_runs_without_ray_and_the_like(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, "-c", WITHOUT, "gpu-check", "--device", "cpu", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found.keys() == {*check.SECTIONS, "goals"}
    assert [name for name, section in found.items() if name != "goals" and "failed" in section] == []
    assert all(found[name]["holds"] for name in ("draws", "attacks", "repeats"))
    assert len(found["goals"]) == len(rates.GOALS) + 1
    table = done.stdout.splitlines()
    assert table[0].startswith("# ")
    assert all(line.count("|") == 3 for line in table[2:])


def test_a_section_that_fails_is_named_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def section(name: str) -> dict[str, object]:
        if name == "attacks":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
        measured = {"test": {"8": {rates.STRICT: 10.0, "ours, bfloat16": 50.0, "ours, tf32": "out of memory"}}}
        return {"holds": True, **({"gradients a second": measured} if name == "rates" else {})}

    named = {name: (lambda _, name=name: section(name), seconds) for name, (_, seconds) in check.SECTIONS.items()}
    monkeypatch.setattr(check, "SECTIONS", named)
    assert check.main(["--device", "cpu", "--out", str(tmp_path / "check.json")]) == 1
    printed = capsys.readouterr().out
    assert "| attacks | RuntimeError: CUDA error: an illegal memory access was encountered |" in printed
    assert "| test, 8 images: ours, tf32 | out of memory |" in printed
    assert "times the plain loop, strict float32 (goal: 4) | 5.00, holds |" in printed
    assert json.loads((tmp_path / "check.json").read_text())["goals"][0]["holds"]


def test_what_does_not_hold_is_shown_in_detail() -> None:
    found = {
        "attacks": {"variants": {"i": {"differing": 2 * MOST_DIFFERING}, "mi": {"differing": 0.0}}},
        "repeats": {
            "equal": {"plain, tf32": {"twice": False}},
            "operations without a fixed order": {"plain": ["put_"]},
        },
        "success": {},
    }
    assert [name for name, _ in check._misses(found)] == [
        "attack i",
        "same bytes: plain, tf32",
        "no fixed order: plain",
    ]


def test_the_sections_are_given_seven_minutes_in_all() -> None:
    assert sum(seconds for _, seconds in check.SECTIONS.values()) <= 7 * 60
