"""Functions called in child processes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from pipeline.child_process import ChildProcess, run_in_child_process
from pipeline.errors import CapacityError, MissingError

ROOT = Path(__file__).parents[1]


def exit_with(code: int) -> None:
    os._exit(code)


def kill_own_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise MissingError("s3://b/k: no such object")


def divide(by: int) -> float:
    return 1 / by


def write_pid_and_sleep(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


def test_the_result_of_a_function_comes_from_another_process() -> None:
    assert run_in_child_process(os.getpid, task="asking", timeout_minutes=1) != os.getpid()
    assert run_in_child_process(partial(divide, 4), task="dividing", timeout_minutes=1) == 0.25


def test_a_process_calls_one_function_after_another_also_after_an_error() -> None:
    with ChildProcess() as child:
        first = child.call(os.getpid, task="asking", timeout_minutes=1)
        with pytest.raises(MissingError):
            child.call(refuse, task="refusing", timeout_minutes=1)
        result = child.begin(partial(divide, 4), task="dividing", timeout_minutes=1)
        assert result() == 0.25
        assert child.call(os.getpid, task="asking", timeout_minutes=1) == first
    assert not psutil.pid_exists(first)


def test_a_process_that_died_between_calls_is_an_error_of_the_next() -> None:
    with ChildProcess() as child:
        os.kill(child.call(os.getpid, task="asking", timeout_minutes=1), signal.SIGKILL)
        with pytest.raises(CapacityError, match="dividing: its process died"):
            child.call(partial(divide, 4), task="dividing", timeout_minutes=1)


def test_a_user_error_is_raised_unchanged() -> None:
    with pytest.raises(MissingError, match=r"^s3://b/k: no such object$"):
        run_in_child_process(refuse, task="refusing", timeout_minutes=1)


def test_a_defect_is_raised_with_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        run_in_child_process(partial(divide, 0), task="dividing", timeout_minutes=1)
    assert "in divide" in raised.value.__notes__[0]


ENDS = [(kill_own_process, "killed by signal 9; out of memory?"), (partial(exit_with, 3), "exit code 3")]


@pytest.mark.parametrize(("end", "how"), ENDS)
def test_a_process_that_dies_is_a_capacity_error_with_a_reason(end: partial[None], how: str) -> None:
    with pytest.raises(CapacityError, match=re.escape(f"loading the models: its process died ({how})")):
        run_in_child_process(end, task="loading the models", timeout_minutes=1)


def test_a_process_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match=r"^loading the models took longer than 0\.2 minutes$"):
        run_in_child_process(
            partial(write_pid_and_sleep, tmp_path / "pid"), task="loading the models", timeout_minutes=0.2
        )
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a new group that calls a sleeping function in a child; the file `pid` has the child's pid."""
    code = (
        "import sys\nfrom functools import partial\nfrom pathlib import Path\n"
        "from pipeline.child_process import run_in_child_process\n"
        "from tests.test_child_process import write_pid_and_sleep\n"
        "try:\n    run_in_child_process(partial(write_pid_and_sleep, Path(sys.argv[1])), task='x', timeout_minutes=1)\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "pid")], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def is_gone(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_ctrl_c_ends_caller_and_child_without_output(caller: subprocess.Popen[bytes], tmp_path: Path) -> None:
    os.killpg(caller.pid, signal.SIGINT)  # as a terminal does
    _, errors = caller.communicate(timeout=60)
    assert (caller.returncode, errors) == (130, b"")
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_the_child_ends_when_its_caller_is_killed(caller: subprocess.Popen[bytes], tmp_path: Path) -> None:
    caller.kill()
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_caller_that_is_stopped_during_the_start_prints_nothing() -> None:
    # The arguments exceed a pipe's buffer: the caller is still writing them when the signal arrives.
    code = (
        "import os, signal, sys, threading, time, psutil\nfrom functools import partial\n"
        "from pipeline.child_process import run_in_child_process\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "def stop():\n"
        "    while not any('spawn_main' in ' '.join(child.cmdline()) for child in psutil.Process().children()):\n"
        "        time.sleep(0.001)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=stop).start()\n"
        "try:\n    run_in_child_process(partial(len, bytes(50_000_000)), task='counting', timeout_minutes=1)\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert (run.returncode, run.stderr) == (130, b"")


def test_a_signal_during_the_start_of_the_thread_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        begin(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_in_child_process(partial(time.sleep, 100), task="sleeping", timeout_minutes=1)
    time.sleep(2)  # a forgotten process would start meanwhile
    assert not any("spawn_main" in " ".join(child.cmdline()) for child in psutil.Process().children())
