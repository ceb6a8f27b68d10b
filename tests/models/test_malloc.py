import json
import os
import subprocess
import sys

from pipeline.models import malloc
from tests.conftest import ROOT

# Steps that allocate 200 MB: page faults, megabytes held after them, and megabytes left after release.
_STEPS = """
import json, resource, sys, threading, torch
from pathlib import Path
from pipeline.models import malloc

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1000

def step():
    tensors = [torch.ones(4_000_000) for _ in range(10)]  # 16 MB each, and one of 40
    tensors.append(torch.ones(10_000_000))

def measure():
    before = resident_mb()
    for _ in range(10):  # by then the heap has found room for every block; beside other work once not in three
        step()
    faults_before = faults()
    for _ in range(10):
        step()
    measured = {"faults": faults() - faults_before, "grown_mb": resident_mb() - before}
    malloc.release_freed_memory()
    print(json.dumps(measured | {"left_mb": resident_mb() - before}))

if len(sys.argv) > 1:
    getattr(malloc, sys.argv[1])()
    torch.ones(1)
    measure()
else:
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
"""


def run_steps(*settings: str, environment: dict[str, str] | None = None) -> dict[str, float]:
    """Measures the steps in a process of its own: after calling a function of `malloc`, or in a thread without."""
    command = [sys.executable, "-c", _STEPS, *settings]
    env = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def test_kept_memory_serves_the_next_step_and_is_released_on_request() -> None:
    kept, default = run_steps("keep_freed_memory"), run_steps("restore_defaults")
    assert kept["grown_mb"] > 150
    assert default["faults"] > 10_000
    assert kept["faults"] < default["faults"] / 50
    assert kept["left_mb"] < 50


def test_with_the_environment_every_thread_keeps_its_memory() -> None:
    kept, default = run_steps(environment=malloc.ENVIRONMENT), run_steps()
    assert default["faults"] > 10_000
    assert kept["faults"] < default["faults"] / 50
    assert kept["left_mb"] < 50
