"""Terminals, encodings and temporary folders that are not as usual."""

import atexit
import contextlib
import functools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import timm
import torch
from safetensors.torch import save_file

from jobs import streams
from pipeline.engine import ray_folder
from pipeline.ledger import Ledger
from pipeline.plan.recipe_reader import load_recipe
from pipeline.storage import Storage
from pipeline.version import VERSION
from tests.conftest import ROOT
from tests.corpus.cases import Refusal, case, gnp
from tests.samples import CLASSES, attack, make_plan, sample, tiny_job, write_recipe, write_shard
from tests.stages.runs import run_stages

KIND = "environments"
# Characters that reports, plans, tables, bars and messages of the program have.
PRINTED = "– … × → ε ± ≤ ≥ \N{MICRO SIGN} μ • · ─ │ ┌ ┏ ━ ┃ ┡ ╇ ╭ ╮ ╰ ╯ └ ┘ ├ ┤ ’ “ ” ∞ ²"


@functools.cache
def _store() -> str:
    """A store with results of two attacks, made once."""
    folder = Path(tempfile.mkdtemp(prefix="gnp-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    checkpoint = _checkpoint(folder)
    write_shard(folder / "in" / "s.tar", [sample(index) for index in range(3)])
    planned = make_plan(tiny_job(folder / "in", checkpoint, attacks=(attack("i"), attack("mi"))))
    ledger = Ledger(Storage(str(folder / "store"), create=True))
    ledger.record_plan(planned.to_record())
    run_stages(planned, ledger)
    return ledger.storage.url


def _checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


def _process(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Python in a process of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, check=False)


# Output


def _add_encoding(name: str, encoding: str, environment: dict[str, str]) -> None:
    @case(KIND, f"output in {name} takes every character of the program, and names that are no text", (0, True, True))
    def run(_: Path) -> object:
        printed = ascii(f"{PRINTED} é \udcff")
        code = f"import sys; from jobs import streams; streams.prepare_streams(); print({printed})"
        done = _process(f"{code}; print({printed}, file=sys.stderr)", **environment)
        texts = done.stdout.decode(encoding), done.stderr.decode(encoding)
        return done.returncode, *(">" in text and text.endswith("?\n") for text in texts)


for _name, _encoding, _environment in (
    ("ASCII", "ascii", {"PYTHONIOENCODING": "ascii"}),
    ("code page 1252", "cp1252", {"PYTHONIOENCODING": "cp1252"}),
    ("code page 437", "cp437", {"PYTHONIOENCODING": "cp437"}),
    ("the locale C", "ascii", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
):
    _add_encoding(_name, _encoding, _environment)


@case(KIND, "what ASCII lacks is replaced by its like, and nothing by nothing", ("- ... x > eps +- <= >= u u * *", "?"))
def characters(_: Path) -> object:
    return streams.plain("– … × → ε ± ≤ ≥ \N{MICRO SIGN} μ • ·"), streams.plain("\udcff")


@case(
    KIND,
    "commands on a dumb terminal of 40 columns in ASCII, without colours and a home, with odd settings",
    (b"", True, True, True),
)
def narrow_terminal(_: Path) -> object:
    commands = ["--help"], ["plan", "--help"], ["report", _store()], ["status", _store()]
    code = (
        "import sys; from jobs import cli\n"
        f"for arguments in {commands}:\n    sys.argv[1:] = arguments; assert cli.run() == 0"
    )
    odd = {"OMP_NUM_THREADS": "abc", "PYTHONWARNINGS": "error", "HOME": "/proc/nowhere"}
    plain = {"PYTHONIOENCODING": "ascii", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "40"}
    done = _process(code, **odd, **plain)
    text = done.stdout.decode("ascii")
    return done.stderr, "\x1b" not in text, "eps" in text, "clean accuracy" in text


def _report_into(descriptor: int | None, *, closed: str = "") -> tuple[int, bytes]:
    """Exit code and error output of `gnp report` with another standard output, or a stream closed by the shell."""
    command = f'exec "{sys.executable}" -m jobs report "{_store()}" {closed}'
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, stdout=descriptor, stderr=subprocess.PIPE, check=False)
    return done.returncode, done.stderr


@case(KIND, "standard output on a full disk", (2, True))
def full_disk(_: Path) -> object:
    with open("/dev/full", "wb") as full:
        code, error = _report_into(full.fileno())
    return code, error.startswith(b"error: No space left on device")


@case(KIND, "the reader of standard output has gone", b"")
def gone_reader(_: Path) -> object:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return _report_into(writer)[1]
    finally:
        os.close(writer)


@case(KIND, "standard output and error are closed", 0)
def closed_streams(_: Path) -> object:
    return _report_into(None, closed=">&- 2>&-")[0]


@case(KIND, "gnp --version", f"gnp {VERSION}\n")
def version(_: Path) -> object:
    return gnp("--version")


@case(KIND, "a page where a folder is in the way", Refusal("index.html: Is a directory"))
def page_in_the_way(folder: Path) -> object:
    (folder / "index.html").mkdir()
    with mock.patch("pipeline.analysis.page.render", return_value=""):  # it takes seconds
        return gnp("report", _store(), "--html", folder)


# Folders and files


@contextlib.contextmanager
def _deleted_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    (folder / "gone").mkdir()
    os.chdir(folder / "gone")
    (folder / "gone").rmdir()
    try:
        yield
    finally:
        os.chdir(before)


@case(
    KIND, "a relative store, and a current folder that was deleted", Refusal("current folder does not exist any more")
)
def deleted_folder(folder: Path) -> object:
    with _deleted_folder(folder):
        return gnp("report", "results")


@case(KIND, "an absolute store, and a current folder that was deleted", True)
def deleted_folder_and_absolute_store(folder: Path) -> object:
    with _deleted_folder(folder):
        return "clean accuracy" in gnp("report", _store())


def _add_store_name(name: str, folder_name: str, scheme: str = "") -> None:
    @case(KIND, f"a store whose address has {name}", b"value")
    def run(folder: Path) -> object:
        address = f"{scheme}{folder}/{folder_name}"
        Storage(address, create=True).put("a/b", b"value")
        return Storage(f"{address.rstrip('/')}/").get("a/b")


for _name, _folder in (
    ("spaces", "my results "),
    ("a percent sign", "50%20off"),
    ("a number sign and a question mark", "a#b?c"),
    ("letters beyond ASCII", "Ergebnisse-ü-結果"),
    ("a slash at its end", "plain/"),
    ("brackets", "a[0]{1}*"),
):
    _add_store_name(_name, _folder)
_add_store_name("file:// and an escaped space", "my%20results", "file://")


@case(KIND, "a folder to which only its owner has access (umask 077)", 0o700)
def umask(folder: Path) -> object:
    before = os.umask(0o077)
    try:
        Storage(str(folder / "store"), create=True).put("a/b", b"")
    finally:
        os.umask(before)
    return stat.S_IMODE((folder / "store" / "a").stat().st_mode)


def _add_recipe(name: str, expected: object, encode: Callable[[str], bytes]) -> None:
    @case(KIND, f"a recipe with {name}", expected)
    def run(folder: Path) -> object:
        path = write_recipe(folder, "x.safetensors")
        path.write_bytes(encode(f"# ü\n{path.read_text(encoding='utf-8')}"))
        return load_recipe(path).data.name


_add_recipe("a byte-order mark", "tiny", lambda text: text.encode("utf-8-sig"))
_add_recipe("the line ends of Windows", "tiny", lambda text: text.replace("\n", "\r\n").encode())
_add_recipe("UTF-16", Refusal("not UTF-8.*save the file as UTF-8"), lambda text: text.encode("utf-16"))
_add_recipe("Latin-1", Refusal("not UTF-8.*save the file as UTF-8"), lambda text: text.encode("latin-1"))


# Ray's folder


@case(KIND, "a folder of the longest path that holds Ray's sockets, and one of a byte more", (True, False, False))
def longest_folder(folder: Path) -> object:
    room = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
    longest = f"{tempfile.gettempdir()}/".ljust(room, "x")
    more = [f"{longest}x", f"{longest[:-1]}ü"]
    assert len(longest) == room
    return tuple(ray_folder.defect(path, platform="linux") is None for path in (longest, *more))


@case(KIND, "the same folder on macOS, whose paths are shorter", "its path is too long for Ray's sockets")
def longest_folder_on_macos(_: Path) -> object:
    room = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
    return ray_folder.defect(f"{tempfile.gettempdir()}/".ljust(room, "x"), platform="darwin")


@case(KIND, "temporary folders that are a file, below a file, not there, not writable", (True, True, None, True))
def unusable_folders(_: Path) -> object:
    with tempfile.NamedTemporaryFile() as file:
        below = ray_folder.defect(f"{file.name}/ray")
        return (
            "is a file" in str(ray_folder.defect(file.name)),
            "is a file" in str(below),
            ray_folder.defect(f"{tempfile.gettempdir()}/none/ray"),
            ray_folder.defect("/proc/nowhere/ray") is not None,
        )


@case(KIND, "a full disk below the temporary folder", "its disk is full")
def full_temporary_folder(_: Path) -> object:
    with mock.patch("shutil.disk_usage", return_value=mock.Mock(free=2**20)):
        return ray_folder.defect(f"{tempfile.gettempdir()}/ray")


@case(KIND, "a short folder is private, in the first place that can be used", (0o700, True))
def short_folder(_: Path) -> object:
    made = ray_folder.make_short_folder(["/proc/nowhere", tempfile.gettempdir()], reason="")
    mode = stat.S_IMODE(made.stat().st_mode)
    made.rmdir()
    return mode, made.parent == Path(tempfile.gettempdir())


@case(KIND, "no folder at all for Ray", Refusal("Ray needs a folder.*too long.*nor can any of /proc/nowhere"))
def no_short_folder(_: Path) -> object:
    return ray_folder.make_short_folder(["/proc/nowhere"], reason="/x: too long")


@case(KIND, "a local Ray under a TMPDIR of 100 characters: one line, and nothing is left", (0, "up\n", 1, True))
def long_tmpdir(folder: Path) -> object:
    tmpdir = folder / ("x" * 100)
    tmpdir.mkdir()
    code = (
        "import os; from jobs.exit_codes import end_process; from pipeline.engine import cluster\n"
        "cluster.connect('local'); print('up'); end_process(0)"
    )
    done = _process(code, TMPDIR=str(tmpdir), RAY_ADDRESS="local")
    lines = done.stderr.decode().splitlines()
    made = lines[0].split(", not to")[0].removeprefix("Ray's files go to ")
    return done.returncode, done.stdout.decode(), len(lines), made.startswith("/") and not Path(made).exists()
