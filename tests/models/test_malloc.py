import json
import subprocess
import sys

from tests.conftest import ROOT

# Pages that the system had to clear, and megabytes held and left, over steps that allocate 200 MB.
_STEPS = """
import json, resource, sys, torch
from pathlib import Path
from pipeline import heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1000

def step():
    kept = [torch.ones(4_000_000) for _ in range(10)]  # 16 MB each, and one of 40
    kept.append(torch.ones(10_000_000))

getattr(heap, sys.argv[1])()
torch.ones(1)
before = resident_mb()
for _ in range(3):
    step()
warm = faults()
for _ in range(10):
    step()
found = {"faults": faults() - warm, "grown_mb": resident_mb() - before}
heap.hand_back()
print(json.dumps(found | {"left_mb": resident_mb() - before}))
"""


def steps(how: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _STEPS, how], cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_a_kept_heap_serves_the_next_step_and_is_handed_back_on_request() -> None:
    kept, usual = steps("keep"), steps("usual")
    assert kept["grown_mb"] > 150
    assert usual["faults"] > 10_000
    assert kept["faults"] < usual["faults"] / 50
    assert kept["left_mb"] < 50
