"""`gnp generate` submitted to a Ray cluster: a head that takes no work, a node for generators, a node for scorers."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from infra.local_cluster import BIN, Cluster, cluster
from pipeline.ledger import Ledger
from pipeline.maintenance.verify import audit
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import write_shard

# The demo has two shards of ten photographs, in parts of five.
PARTS, ATTACKS = 4, 6
NEW_TARGET = """
[[targets]]
model = "tf_efficientnet_lite1"
name = "efficientnet-lite1-jpeg"
checkpoint = "{assets}/weights/lite1.safetensors"
defense = "jpeg"
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


def submit(nodes: Cluster, name: str, *program: str) -> None:
    command = [str(BIN / "ray"), "job", "submit", "--submission-id", name, "--no-wait", "--", *program]
    subprocess.run(command, env={**os.environ, **nodes.environment}, check=True, cwd=ROOT, capture_output=True)


def wait_for(nodes: Cluster, name: str) -> tuple[str, str]:
    """Waits for a job to end; returns its status and its log."""
    while (status := nodes.ask(f"/api/jobs/{name}")["status"]) in ("PENDING", "RUNNING"):
        time.sleep(0.5)
    return status, nodes.ask(f"/api/jobs/{name}/logs")["logs"]


def children_named(parent: psutil.Process, word: str) -> list[psutil.Process]:
    """Descendants of a process that have a word in their command line."""
    return [child for child in parent.children(recursive=True) if word in " ".join(child.cmdline())]


def committed(store: Path, kind: str = "adversarial") -> int:
    return sum(1 for _ in (store / "markers" / kind).rglob("*.json"))


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.journey
@pytest.mark.timeout(1200)
def test_the_demo_survives_the_loss_of_a_node_and_of_its_driver_and_later_runs_do_only_what_is_new(
    nodes: Cluster, demo_assets: Path, tmp_path: Path
) -> None:
    assert [sorted(node.keys() & {"CPU", "gnp_generator", "gnp_scorer"}) for node in nodes.alive()].count([]) == 1
    store, everything = tmp_path / "store", PARTS * ATTACKS
    demo = [sys.executable, "-m", "jobs.demo", "--store", str(store)]

    submit(nodes, "first", *demo)
    wait_until(lambda: committed(store) >= 4)
    for resource, kind in (("gnp_generator", "ray::Generator"), ("gnp_scorer", "ray::Scorer")):
        node = psutil.Process(nodes.nodes[resource].pid)
        wait_until(lambda node=node, kind=kind: children_named(node, kind))  # type: ignore[misc]
        assert not children_named(node, "ray::Scorer" if kind == "ray::Generator" else "ray::Generator")
    nodes.remove("gnp_generator")
    before = committed(store)
    assert before < everything
    nodes.add("gnp_generator")
    wait_until(lambda: committed(store) >= max(before + 2, everything // 2))
    assert nodes.head is not None
    children_named(psutil.Process(nodes.head.pid), "jobs.demo")[-1].kill()
    assert wait_for(nodes, "first")[0] == "FAILED"
    assert committed(store) < everything

    submit(nodes, "second", *demo)
    status, log = wait_for(nodes, "second")
    assert (status, committed(store)) == ("SUCCEEDED", everything)
    assert re.search(r"^done: \d items in \d+ s \(\d+ images attacked, 0 quarantined\)$", log, re.MULTILINE)
    assert log.rstrip().endswith("(open it in a browser)")

    # Later nights: three new photographs, a new target, and nothing new.
    recipe, shards = nightly(tmp_path, demo_assets)
    generate = [str(BIN / "gnp"), "generate", str(recipe), "--store", str(store)]
    add_flipped(shards, 3)
    submit(nodes, "third", *generate)
    status, log = wait_for(nodes, "third")
    assert status == "SUCCEEDED"
    assert re.search(rf"done: 1 items in \d+ s \({3 * ATTACKS} images attacked, 0 quarantined\)", log)
    answers = committed(store, "transfer")
    recipe.write_text(recipe.read_text() + NEW_TARGET.format(assets=demo_assets))
    submit(nodes, "fourth", *generate)
    status, log = wait_for(nodes, "fourth")
    assert re.search(r"done: 3 items in \d+ s \(0 images attacked, 0 quarantined\)", log)
    assert committed(store, "transfer") - answers == (PARTS + 1) * ATTACKS
    submit(nodes, "fifth", *generate)
    assert wait_for(nodes, "fifth")[1].rstrip().splitlines()[-1].startswith("nothing to do: ")
    assert audit(Ledger(Storage(str(store)))).problems == []


@pytest.mark.journey
@pytest.mark.timeout(1200)
def test_every_command_of_the_runbook_works_during_a_run(nodes: Cluster, demo_assets: Path, tmp_path: Path) -> None:
    """In the order of the page: the run is stopped, resumed and finalized."""
    store = tmp_path / "store"
    recipe, _ = nightly(tmp_path, demo_assets)
    submit(nodes, "tonight", str(BIN / "gnp"), "generate", str(recipe), "--store", str(store))
    wait_until(lambda: committed(store) >= 2)
    run_the_runbook(nodes, {"STORE": str(store), "RECIPE": str(recipe), "JOB": "tonight"})
    status, log = wait_for(nodes, "tonight")
    assert status == "STOPPED"
    assert re.search(r"^stopped \(\d+ images attacked, 0 quarantined\); committed results are kept", log, re.MULTILINE)
    assert committed(store) == PARTS * ATTACKS
    assert audit(Ledger(Storage(str(store)))).problems == []


def nightly(folder: Path, assets: Path) -> tuple[Path, Path]:
    """The demo's recipe with a wildcard for its shards, and the folder of the shards."""
    shards = Path(shutil.copytree(assets / "shards", folder / "shards"))
    text = (ROOT / "jobs" / "recipes" / "demo.toml").read_text()
    text = text.replace("build/demo/shards/photographs-{000000..000001}.tar", f"{shards}/photographs-*.tar")
    (recipe := folder / "nightly.toml").write_text(text.replace("build/demo", str(assets)))
    return recipe, shards


def add_flipped(shards: Path, count: int) -> None:
    """Adds a shard with some of the photographs mirrored."""
    samples = []
    with tarfile.open(shards / "photographs-000000.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))[:count]
        for name in names:
            key = name.removesuffix(".jpg")
            image, label = (tar.extractfile(f"{key}.{kind}") for kind in ("jpg", "cls"))
            assert image is not None
            assert label is not None
            Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored := io.BytesIO(), "jpeg")
            samples.append({"__key__": f"{key}-mirrored", "jpg": mirrored.getvalue(), "cls": label.read()})
    write_shard(shards / "photographs-000002.tar", samples)


def run_the_runbook(nodes: Cluster, variables: dict[str, str]) -> None:
    """Runs every command of docs/runbook.md in order."""
    environment = {**os.environ, **nodes.environment, "TOKEN": nodes.environment["RAY_AUTH_TOKEN"], **variables}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    assert len(COMMANDS) > 15
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
