"""What Prometheus reads off a node that a run was on; tests/infra/test_alerts.py has what is asked of it."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from pipeline import engine
from pipeline.analysis.report import summarise
from pipeline.engine import metrics
from pipeline.ledger import Ledger, leases
from pipeline.plan.pools import Pools
from pipeline.plan.resolve import pickle_plan
from pipeline.storage import Storage
from tests.conftest import ROOT
from tests.samples import attack, make_plan, sample, tiny_job, write_shard

DASHBOARD = json.loads((ROOT / "infra" / "grafana" / "gnp.json").read_text())
METRICS = {metrics.exported(metric): metric for metric in metrics.ALL}


def test_the_dashboard_shows_every_metric() -> None:
    queries = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    assert set(re.findall(r"ray_gnp_\w+", queries)) == METRICS.keys()


def scraped() -> dict[str, dict[str, float]]:
    """What this node exports: name → labels → value."""
    (node,) = (node for node in ray.nodes() if node["Alive"])
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        match = re.fullmatch(r"(ray_gnp_\w+)\{(.*)\} (\S+)", line)
        if match:
            found.setdefault(match[1], {})[match[2]] = float(match[3])
    return found


@pytest.mark.usefixtures("ray_on_four_devices")
def test_a_run_s_metrics_are_what_it_made(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """One image is damaged, and one shard: it is tried once and given up."""
    broken = {**sample(3), "jpg": b"no image"}
    write_shard(tmp_path / "in" / "good.tar", [sample(0), sample(1), sample(2), broken])
    bad = write_shard(tmp_path / "in" / "bad.tar", [sample(5)])
    bad.write_bytes(bad.read_bytes()[:-10240])
    planned = make_plan(tiny_job(tmp_path / "in", tiny_checkpoint, attacks=(attack("i"), attack("noise"))))
    store = Storage(str(tmp_path / "store"))
    exported: dict[str, dict[str, float]] = {}

    def merge_scraped(*_: object) -> None:
        """Keeps the last value of every series: Ray stops to export a gauge that is not set again."""
        for name, series in scraped().items():
            exported.setdefault(name, {}).update(series)

    pools = Pools(generators=1, scorers=1)
    outcome = engine.run_plan(pickle_plan(planned), store.url, pools=pools, on_progress=merge_scraped)
    assert len(outcome.failed) == 1
    (seen,) = leases.list_runs(store, now=store.read_clock())

    def of_this_run(name: str, **labels: str) -> float:
        wanted = [f'{key}="{value}"' for key, value in {"run": seen.id, **labels}.items()]
        series = exported.get(f"ray_{name}", {}).items()
        return sum(value for key, value in series if all(each in key.split(",") for each in wanted))

    end = time.monotonic() + 60
    while True:  # nodes hand them on every few seconds
        merge_scraped()
        awaited = "gnp_counted_total", "gnp_items_failed_total", "gnp_phase_seconds_total", "gnp_memory_bytes"
        if all(of_this_run(name) for name in awaited):
            break
        assert time.monotonic() < end, exported.keys()
        time.sleep(1)
    assert exported.keys() == METRICS.keys()
    assert of_this_run("gnp_images_total", stage="generator") == 2 * 3
    assert of_this_run("gnp_images_total", stage="scorer") == 3 * 3
    assert of_this_run("gnp_parts_total", stage="scorer") == 3
    assert of_this_run("gnp_quarantined_total") == 1
    assert of_this_run("gnp_tries_failed_total", stage="generator", cause="item") == 1
    assert of_this_run("gnp_items_failed_total") == 1
    assert of_this_run("gnp_phase_seconds_total", stage="generator", phase="gradient") > 0
    assert of_this_run("gnp_memory_bytes", stage="generator") > 1e7
    rates = {line.attack: line.rates["target"] for line in summarise(Ledger(store)).success}
    for name, rate in rates.items():
        assert of_this_run("gnp_counted_total", attack=name, source="tiny", target="tiny") == rate.n
        assert of_this_run("gnp_fooled_total", attack=name) == rate.count
