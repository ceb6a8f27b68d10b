"""Attacks on an emulated device: the same pixels as on the CPU, and nothing between host and device in any step."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.emulated_device import COPYING, IN_BFLOAT16


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.emulated_device"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def traffic(counts: dict[str, int]) -> int:
    return sum(count for what, count in counts.items() if what not in ("operations", "casts"))


def test_steps_neither_copy_nor_wait(found: dict[str, Any]) -> None:
    """What there is happens once: at the start, at the end, or where something is made first."""
    growing = {name: [traffic(counts) for counts in attack["counts"]] for name, attack in found.items()}
    assert {name for name, (two_steps, four_steps) in growing.items() if four_steps > two_steps} == {COPYING}


def test_pixels_are_those_of_the_cpu(found: dict[str, Any]) -> None:
    differing = {name for name, attack in found.items() if attack["differing"]}
    assert differing <= {IN_BFLOAT16}, "autocast, on the CPU, keeps more in float32"


def test_a_step_in_bfloat16_casts_what_goes_in_and_out_and_no_weights(found: dict[str, Any]) -> None:
    four_steps, in_float32 = (found[name]["counts"][1]["casts"] for name in (IN_BFLOAT16, "mi"))
    assert four_steps - in_float32 == 4 * 4, "inputs and logits, forward and backward"
