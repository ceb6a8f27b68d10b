"""Memory of this process, and functions that are measured in a process of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def peak_mb() -> float:
    """Peak memory of this process; `ru_maxrss` would include that of the process it was forked from."""
    return _status_kb("VmHWM") / 1000


def memory_mb() -> float:
    """Current memory of this process."""
    return _status_kb("VmRSS") / 1000


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def measured(function: Callable[..., dict[str, Any]], *arguments: object, **environment: str) -> dict[str, Any]:
    """The result of a function of tests.scale in a new process."""
    name = function.__name__
    code = f"import json, sys; from {function.__module__} import {name}; print(json.dumps({name}(*sys.argv[1:])))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
