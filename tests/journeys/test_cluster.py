"""The main job as clusters run it: submitted to a head that does no work, to nodes kept for one kind of worker each."""

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

# Of the demo: two shards of ten photographs, in parts of five.
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


def end_of(nodes: Cluster, name: str) -> tuple[str, str]:
    """Waits for a job's end: its status, and what it said."""
    while (status := nodes.ask(f"/api/jobs/{name}")["status"]) in ("PENDING", "RUNNING"):
        time.sleep(0.5)
    return status, nodes.ask(f"/api/jobs/{name}/logs")["logs"]


def programs(of: psutil.Process, word: str) -> list[psutil.Process]:
    """Processes below one that have a word in what they were started as, or call themselves."""
    return [each for each in of.children(recursive=True) if word in " ".join(each.cmdline())]


def committed(store: Path, kind: str = "adversarial") -> int:
    return sum(1 for _ in (store / "markers" / kind).rglob("*.json"))


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 200
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.journey
@pytest.mark.timeout(1200)
def test_the_demo_survives_a_node_s_loss_and_its_driver_s_and_a_second_run_does_only_what_is_new(
    nodes: Cluster, demo_assets: Path, tmp_path: Path
) -> None:
    assert [sorted(node.keys() & {"CPU", "gnp_generator", "gnp_scorer"}) for node in nodes.alive()].count([]) == 1
    store, everything = tmp_path / "store", PARTS * ATTACKS
    demo = [sys.executable, "-m", "jobs.demo", "--store", str(store)]

    submit(nodes, "first", *demo)
    until(lambda: committed(store) >= 4)
    for resource, kind in (("gnp_generator", "ray::Generator"), ("gnp_scorer", "ray::Scorer")):
        node = psutil.Process(nodes.nodes[resource].pid)
        until(lambda node=node, kind=kind: programs(node, kind))  # type: ignore[misc]
        assert not programs(node, "ray::Scorer" if kind == "ray::Generator" else "ray::Generator")
    nodes.remove("gnp_generator")
    stood = committed(store)
    assert stood < everything
    nodes.add("gnp_generator")
    until(lambda: committed(store) >= max(stood + 2, everything // 2))
    assert nodes.head is not None
    programs(psutil.Process(nodes.head.pid), "jobs.demo")[-1].kill()
    assert end_of(nodes, "first")[0] == "FAILED"
    assert committed(store) < everything

    submit(nodes, "second", *demo)
    status, said = end_of(nodes, "second")
    assert (status, committed(store)) == ("SUCCEEDED", everything)
    assert re.search(r"^done: \d items in \d+ s \(\d+ images attacked, 0 quarantined\)$", said, re.MULTILINE)
    assert said.rstrip().endswith("(open it in a browser)")

    # The nights after: three new photographs, a new target, and nothing.
    recipe, shards = nightly(tmp_path, demo_assets)
    generate = [str(BIN / "gnp"), "generate", str(recipe), "--store", str(store)]
    add_flipped(shards, 3)
    submit(nodes, "third", *generate)
    status, said = end_of(nodes, "third")
    assert status == "SUCCEEDED"
    assert re.search(rf"done: 1 items in \d+ s \({3 * ATTACKS} images attacked, 0 quarantined\)", said)
    answers = committed(store, "transfer")
    recipe.write_text(recipe.read_text() + NEW_TARGET.format(assets=demo_assets))
    submit(nodes, "fourth", *generate)
    status, said = end_of(nodes, "fourth")
    assert re.search(r"done: 3 items in \d+ s \(0 images attacked, 0 quarantined\)", said)
    assert committed(store, "transfer") - answers == (PARTS + 1) * ATTACKS
    submit(nodes, "fifth", *generate)
    assert end_of(nodes, "fifth")[1].rstrip().splitlines()[-1].startswith("nothing to do: ")
    assert audit(Ledger(Storage(str(store)))).problems == []


@pytest.mark.journey
@pytest.mark.timeout(1200)
def test_every_command_of_the_runbook_runs_while_a_run_is_at_work(
    nodes: Cluster, demo_assets: Path, tmp_path: Path
) -> None:
    """In its order: the run is stopped, which lets it put away what is in hand, goes on, and is finalized."""
    store = tmp_path / "store"
    recipe, _ = nightly(tmp_path, demo_assets)
    submit(nodes, "tonight", str(BIN / "gnp"), "generate", str(recipe), "--store", str(store))
    until(lambda: committed(store) >= 2)
    run_the_runbook(nodes, {"STORE": str(store), "RECIPE": str(recipe), "JOB": "tonight"})
    status, said = end_of(nodes, "tonight")
    assert status == "STOPPED"
    assert re.search(r"^stopped \(\d+ images attacked, 0 quarantined\); what is committed stands", said, re.MULTILINE)
    assert committed(store) == PARTS * ATTACKS
    assert audit(Ledger(Storage(str(store)))).problems == []


def nightly(folder: Path, assets: Path) -> tuple[Path, Path]:
    """The demo's recipe over a wildcard, and the folder of its shards."""
    shards = Path(shutil.copytree(assets / "shards", folder / "shards"))
    text = (ROOT / "jobs" / "recipes" / "demo.toml").read_text()
    text = text.replace("build/demo/shards/photographs-{000000..000001}.tar", f"{shards}/photographs-*.tar")
    (recipe := folder / "nightly.toml").write_text(text.replace("build/demo", str(assets)))
    return recipe, shards


def add_flipped(shards: Path, count: int) -> None:
    """One more shard: some of the photographs, seen in a mirror."""
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


def run_the_runbook(nodes: Cluster, told: dict[str, str]) -> None:
    """Every command of docs/runbook.md, one after another."""
    environment = {**os.environ, **nodes.environment, "TOKEN": nodes.environment["RAY_AUTH_TOKEN"], **told}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    assert len(COMMANDS) > 15
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
