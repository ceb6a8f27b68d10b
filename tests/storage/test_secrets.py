"""Credentials are in the environment of processes, and nowhere else."""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray import cloudpickle

from infra import local_s3
from pipeline.engine.worker import ItemResult, Worker
from pipeline.errors import StorageError
from pipeline.ledger import Ledger
from pipeline.plan.recipe_reader import load_recipe
from pipeline.plan.resolve import pickle_plan, resolve_job
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import list_pending, sample, write_recipe, write_shard

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class FinishedRun:
    """A run of the program on the S3 server.

    Attributes:
        recipe: The recipe.
        prefix: Prefix of its keys on the server.
        ray: The folder of all files of Ray, with the logs of every worker.
        output: What the program printed.
    """

    recipe: Path
    prefix: str
    ray: Path
    output: bytes


@pytest.fixture(scope="module")
def finished_run(
    s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[FinishedRun]:
    folder, prefix = tmp_path_factory.mktemp("secrets"), uuid.uuid4().hex
    client = local_s3.client(s3)
    for number in range(2):  # one valid and one truncated, so that failures and their logs are checked too
        shard = write_shard(folder / f"s-{number}.tar", [sample(10 * number + index) for index in range(4)])
        data = shard.read_bytes()[: -10240 if number else None]
        client.put_object(Bucket="demo", Key=f"{prefix}/in/s-{number}.tar", Body=data)
    client.put_object(Bucket="demo", Key=f"{prefix}/in/tiny.safetensors", Body=tiny_checkpoint.read_bytes())
    put = f"s3://demo/{prefix}/in"
    recipe = write_recipe(folder, f"{put}/tiny.safetensors", shards=f"{put}/*.tar")
    ray = tempfile.mkdtemp(prefix="gnp-")  # short: paths of sockets have at most 107 bytes
    command = [sys.executable, "-m", "jobs", "generate", str(recipe), "--store", f"s3://demo/{prefix}/store"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "RAY_TMPDIR": ray}, capture_output=True, check=False)
    assert done.returncode == 1, done.stderr
    assert b"1 of 2 items failed" in done.stdout
    yield FinishedRun(recipe, prefix, Path(ray), done.stdout + done.stderr)
    shutil.rmtree(ray)


@pytest.fixture
def secret(s3: dict[str, str]) -> bytes:
    return s3["AWS_SECRET_ACCESS_KEY"].encode()


@pytest.mark.journey
def test_no_object_and_no_key_in_the_store_holds_the_secret(
    finished_run: FinishedRun, s3: dict[str, str], secret: bytes
) -> None:
    client = local_s3.client(s3)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="demo", Prefix=f"{finished_run.prefix}/store")
    keys = [item["Key"] for page in pages for item in page["Contents"]]
    folders = {key.split("/")[2] for key in keys}
    assert {"shards", "results", "markers", "plans", "runs", "claims", "failures", "models", "weights"} <= folders
    for key in keys:
        found = client.get_object(Bucket="demo", Key=key)
        assert secret not in key.encode()
        assert secret not in str(found["ResponseMetadata"]["HTTPHeaders"]).encode()
        assert secret not in found["Body"].read(), key


def test_no_log_of_ray_holds_the_secret(finished_run: FinishedRun, secret: bytes) -> None:
    files = [path for path in finished_run.ray.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in files}
    assert any(name.startswith("worker-") for name in names), "these are not the logs"
    assert "raylet.out" in names
    assert [path for path in files if secret in path.read_bytes() or secret in str(path).encode()] == []


def test_the_program_does_not_print_the_secret(finished_run: FinishedRun, secret: bytes) -> None:
    assert b"failed: s-1 from" in finished_run.output
    assert secret not in finished_run.output


def test_nothing_sent_between_driver_and_workers_holds_the_secret(
    finished_run: FinishedRun, s3: dict[str, str], secret: bytes
) -> None:
    store = f"s3://demo/{finished_run.prefix}/store"
    planned = resolve_job(load_recipe(finished_run.recipe).job(), Storage(store))
    items = list_pending(planned, Ledger(Storage(store)))
    assert items
    for sent in (planned, pickle_plan(planned), items, store, Worker, ItemResult("failed", "why"), planned.to_record()):
        assert secret not in cloudpickle.dumps(sent)
        assert s3["AWS_ACCESS_KEY_ID"].encode() not in cloudpickle.dumps(planned)


def test_an_open_store_is_not_pickled(finished_run: FinishedRun) -> None:
    for copied in (
        Storage(f"s3://demo/{finished_run.prefix}/store"),
        Ledger(Storage(f"s3://demo/{finished_run.prefix}/store")),
    ):
        with pytest.raises(TypeError, match="holds credentials and is not pickled"):
            cloudpickle.dumps(copied)


def test_no_error_message_of_a_store_holds_the_secret(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, secret: bytes
) -> None:
    wrong = "wrong-secret-of-somebody"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
    with pytest.raises(StorageError) as refused:
        Storage(f"s3://demo/{finished_run.prefix}/store").get("plans/x.json")
    for text in (str(refused.value), repr(refused.value.__cause__), caplog.text):
        assert wrong not in text
        assert secret.decode() not in text
