"""Functions called in processes of their own."""

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

from pipeline.child_process import run_in_child_process
from pipeline.errors import CapacityError, MissingError

ROOT = Path(__file__).parents[1]


def quit_with(code: int) -> None:
    os._exit(code)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise MissingError("s3://b/k: no such object")


def divide(by: int) -> float:
    return 1 / by


def sleep_and_tell(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


def test_it_returns_what_the_function_does_from_another_process() -> None:
    assert run_in_child_process(os.getpid, task="asking", timeout_minutes=1) != os.getpid()
    assert run_in_child_process(partial(divide, 4), task="dividing", timeout_minutes=1) == 0.25


def test_what_a_user_can_mend_comes_back_as_it_was() -> None:
    with pytest.raises(MissingError, match=r"^s3://b/k: no such object$"):
        run_in_child_process(refuse, task="refusing", timeout_minutes=1)


def test_a_defect_comes_back_with_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        run_in_child_process(partial(divide, 0), task="dividing", timeout_minutes=1)
    assert "in divide" in raised.value.__notes__[0]


ENDS = [(kill_itself, "killed by signal 9; out of memory?"), (partial(quit_with, 3), "exit code 3")]


@pytest.mark.parametrize(("end", "how"), ENDS)
def test_a_process_that_dies_is_an_error_with_a_reason(end: partial[None], how: str) -> None:
    with pytest.raises(CapacityError, match=re.escape(f"loading the models: its process died ({how})")):
        run_in_child_process(end, task="loading the models", timeout_minutes=1)


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match=r"^loading the models took longer than 0\.2 minutes$"):
        run_in_child_process(partial(sleep_and_tell, tmp_path / "pid"), task="loading the models", timeout_minutes=0.2)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own group that has a function called that sleeps; the caller's pid is in the file `pid`."""
    code = (
        "import sys\nfrom functools import partial\nfrom pathlib import Path\n"
        "from pipeline.child_process import run_in_child_process\n"
        "from tests.test_child_process import sleep_and_tell\n"
        "try:\n    run_in_child_process(partial(sleep_and_tell, Path(sys.argv[1])), task='x', timeout_minutes=1)\n"
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
    """Whether a process has ended, within a while."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_ctrl_c_ends_it_with_its_caller_and_says_nothing(asked: subprocess.Popen[bytes], tmp_path: Path) -> None:
    os.killpg(asked.pid, signal.SIGINT)  # as a terminal does
    _, errors = asked.communicate(timeout=60)
    assert (asked.returncode, errors) == (130, b"")
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_it_does_not_outlive_a_caller_that_was_killed(asked: subprocess.Popen[bytes], tmp_path: Path) -> None:
    asked.kill()
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_caller_that_is_stopped_while_it_starts_says_nothing_of_it() -> None:
    # What is sent to the process exceeds a pipe: its caller waits for it to be read while the signal arrives.
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


def test_a_signal_while_the_thread_that_starts_it_begins_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        begin(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_in_child_process(partial(time.sleep, 100), task="sleeping", timeout_minutes=1)
    time.sleep(2)  # one that is forgotten would start meanwhile
    assert not any("spawn_main" in " ".join(child.cmdline()) for child in psutil.Process().children())
