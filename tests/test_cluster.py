"""The main job as clusters run it: submitted to a head that does no work, to nodes kept for one kind of worker each."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.local_cluster import BIN, Cluster, cluster
from pipeline.ledger import Ledger
from pipeline.storage import Storage
from pipeline.verify import audit
from tests.conftest import ROOT
from tests.samples import sample, write_recipe, write_shard

ATTACKS = ("noise", "i", "mi", "gnp+mi")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


def submit(nodes: Cluster, name: str, recipe: Path, store: Path) -> None:
    run = [str(BIN / "gnp"), "generate", str(recipe), "--store", str(store)]
    command = [str(BIN / "ray"), "job", "submit", "--submission-id", name, "--no-wait", "--", *run]
    subprocess.run(command, env={**os.environ, **nodes.environment}, check=True, cwd=ROOT, capture_output=True)


def end_of(nodes: Cluster, name: str) -> tuple[str, str]:
    """Waits for a job's end: its status, and what it said last."""
    while (status := nodes.ask(f"/api/jobs/{name}")["status"]) in ("PENDING", "RUNNING"):
        time.sleep(0.5)
    return status, nodes.ask(f"/api/jobs/{name}/logs")["logs"].rstrip().splitlines()[-1]


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


@pytest.mark.timeout(900)
def test_a_submitted_run_survives_a_node_s_loss_and_its_driver_s_and_then_does_only_what_is_new(
    nodes: Cluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert [sorted(node.keys() & {"CPU", "gnp_generator", "gnp_scorer"}) for node in nodes.alive()].count([]) == 1
    for number in range(4):
        shard = [sample(100 * number + index) for index in range(8)]
        write_shard(tmp_path / "in" / f"s-{number}.tar", shard)
    attacks = f"attacks = {list(ATTACKS)}\nbatch_size = 2\n[budget]\nsteps = 60\n"
    recipe = write_recipe(tmp_path, tiny_checkpoint, attacks=attacks, data="part_size = 2")
    store, everything = tmp_path / "store", 4 * 4 * len(ATTACKS)

    submit(nodes, "first", recipe, store)
    until(lambda: committed(store) >= 4)
    for resource, kind in (("gnp_generator", "ray::Generator"), ("gnp_scorer", "ray::Scorer")):
        node = psutil.Process(nodes.nodes[resource].pid)
        until(lambda node=node, kind=kind: programs(node, kind))  # type: ignore[misc]
        assert not programs(node, "ray::Scorer" if kind == "ray::Generator" else "ray::Generator")
    nodes.remove("gnp_generator")
    assert committed(store) < everything
    nodes.add("gnp_generator")
    until(lambda: committed(store) >= everything // 2)
    assert nodes.head is not None
    head = psutil.Process(nodes.head.pid)
    programs(head, "gnp generate")[-1].kill()
    assert end_of(nodes, "first")[0] == "FAILED"
    assert committed(store) < everything

    submit(nodes, "second", recipe, store)
    status, said = end_of(nodes, "second")
    assert (status, committed(store)) == ("SUCCEEDED", everything)
    assert re.fullmatch(r"done: \d items in \d+ s \(\d+ images attacked, 0 quarantined\)", said)

    write_shard(tmp_path / "in" / "s-4.tar", [sample(400 + index) for index in range(3)])
    submit(nodes, "third", recipe, store)
    status, said = end_of(nodes, "third")
    assert status == "SUCCEEDED"
    assert re.search(r"done: 1 items in \d+ s \(12 images attacked, 0 quarantined\)", said), "three, by four attacks"
    submit(nodes, "fourth", recipe, store)
    assert end_of(nodes, "fourth")[1].startswith("nothing to do: ")
    assert audit(Ledger(Storage(str(store)))).problems == []
    run_the_runbook(nodes, {"STORE": str(store), "RECIPE": str(recipe), "JOB": "second"})
    assert audit(Ledger(Storage(str(store)))).problems == []


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
