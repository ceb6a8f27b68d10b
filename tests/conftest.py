"""Shared fixtures: real weights and photographs, a real S3 server, a tiny real network."""

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
# Number of fuzzed inputs by reader, and of simulated histories of the ledger; printed at the end of the run.
TRIED: Counter[str] = Counter()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Passes the counts of a worker process of pytest-xdist to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tried"] = dict(TRIED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Adds up the counts of the worker processes."""
    TRIED.update(getattr(node, "workeroutput", {}).get("tried", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how many random inputs and histories were tried."""
    histories = TRIED["histories"]
    inputs = {reader: count for reader, count in TRIED.items() if reader != "histories"}
    if inputs:
        listed = ", ".join(f"{reader} {count:,}" for reader, count in inputs.items())
        terminalreporter.write_line(f"fuzzed: {listed}: {sum(inputs.values()):,} inputs")
    if histories:
        terminalreporter.write_line(f"simulated: {histories:,} histories of the ledger")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_assets() -> Path:
    """Real ImageNet weights and photographs, as `make demo` prepares them."""
    folder = ROOT / "build" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "preparing"):  # the tests run in several processes
        assets.prepare(folder)
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server; its address and credentials are set in the environment, which Ray's workers inherit."""
    with local_s3.server(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture(params=["folder", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store: once a folder, once on S3."""
    if request.param == "folder":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return f"s3://demo/{uuid.uuid4().hex}"


@pytest.fixture
def storage(store_url: str) -> Storage:
    return Storage(store_url, create=True)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's checkpoint: a tiny network of 10 classes with seeded, untrained weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def ray_on_four_devices(s3: dict[str, str]) -> Iterator[None]:
    """A new local Ray with four logical GPUs, on a machine that has none."""
    del s3  # started first, so that workers inherit its address and credentials
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    from pipeline.engine import cluster
    from pipeline.models import malloc

    ray.shutdown()  # a command that an earlier test ran may have started one
    with pytest.MonkeyPatch.context() as patch:
        for name, value in malloc.ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "_workers_inherit", True)
        yield
        ray.shutdown()
