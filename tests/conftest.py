"""Shared parts: real weights and photographs, a real S3 server, and a tiny real network where size does not matter."""

import os
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from filelock import FileLock
from safetensors.torch import save_file

from infra import local_s3
from jobs.demo import assets
from pipeline.storage import Storage
from tests.samples import CLASSES

ROOT = Path(__file__).parents[1]
# How many inputs each reader was given, and how many histories the ledger lived through.
TRIED: Counter[str] = Counter()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands what one test process counted to the one that prints it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tried"] = dict(TRIED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Adds up what the test processes counted."""
    TRIED.update(getattr(node, "workeroutput", {}).get("tried", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how much was tried at random, which the number of tests does not tell."""
    histories = TRIED["histories"]
    readers = {reader: count for reader, count in TRIED.items() if reader != "histories"}
    if readers:
        listed = ", ".join(f"{reader} {count:,}" for reader, count in readers.items())
        terminalreporter.write_line(f"fuzzed: {listed}: {sum(readers.values()):,} inputs")
    if histories:
        terminalreporter.write_line(f"lived through: {histories:,} histories of the ledger")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_assets() -> Path:
    """Real ImageNet weights and photographs, as `make demo` prepares them."""
    folder = ROOT / "build" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "preparing"):  # the tests run in two processes
        assets.prepare(folder)
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server whose credentials stand in this process's environment, so that Ray's workers inherit them."""
    with local_s3.server(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture(params=["folder", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store, once as a folder and once on S3."""
    if request.param == "folder":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return f"s3://demo/{uuid.uuid4().hex}"


@pytest.fixture
def storage(store_url: str) -> Storage:
    return Storage(store_url, create=True)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 10 classes and untrained, seeded weights, as a user's own checkpoint."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def ray_on_four_devices(s3: dict[str, str]) -> Iterator[None]:
    """A Ray of its own with four logical devices, on a machine that has none."""
    del s3  # started first, so that workers inherit its address and credentials
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
