"""Functions called in processes of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from pipeline.errors import CapacityError, MissingError
from pipeline.isolated import isolated


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
    assert isolated(os.getpid, what="asking") != os.getpid()
    assert isolated(partial(divide, 4), what="dividing") == 0.25


def test_what_a_user_can_mend_comes_back_as_it_was() -> None:
    with pytest.raises(MissingError, match=r"^s3://b/k: no such object$"):
        isolated(refuse, what="refusing")


def test_a_defect_comes_back_with_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        isolated(partial(divide, 0), what="dividing")
    assert "in divide" in raised.value.__notes__[0]


ENDS = [(kill_itself, "killed by signal 9; out of memory?"), (partial(quit_with, 3), "exit code 3")]


@pytest.mark.parametrize(("end", "how"), ENDS)
def test_a_process_that_dies_is_an_error_with_a_reason(end: partial[None], how: str) -> None:
    with pytest.raises(CapacityError, match=re.escape(f"loading the models: its process died ({how})")):
        isolated(end, what="loading the models")


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match=r"^loading the models took longer than 0\.05 minutes$"):
        isolated(partial(sleep_and_tell, tmp_path / "pid"), what="loading the models", minutes=0.05)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_ctrl_c_ends_it_with_its_caller_and_says_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom functools import partial\nfrom pathlib import Path\nfrom pipeline.isolated import isolated\n"
        "from tests.test_isolated import sleep_and_tell\n"
        "try:\n    isolated(partial(sleep_and_tell, Path(sys.argv[1])), what='x')\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    asked = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "pid")], stderr=subprocess.PIPE, start_new_session=True
    )
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(asked.pid, signal.SIGINT)  # as a terminal does
    _, errors = asked.communicate(timeout=60)
    assert (asked.returncode, errors) == (130, b"")
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
