import os
import shutil
from pathlib import Path

import pytest

from infra.check import alerts
from tests.conftest import ROOT

RUNBOOK, FOLDER = ROOT / "docs" / "runbook.md", ROOT / "infra" / "prometheus"
DASHBOARD = ROOT / "infra" / "grafana" / "gnp.json"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("CI"), reason="promtool (Prometheus) is not installed"
)


@needs_promtool
def test_alerts_use_known_metrics_fire_when_they_should_and_are_in_the_runbook() -> None:
    assert alerts.alerts(FOLDER, RUNBOOK) == []


def test_the_dashboard_uses_known_metrics() -> None:
    assert alerts.dashboard(DASHBOARD) == []


@needs_promtool
@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("rules.yaml", "annotations:", "anotations:", "anotations"),
        ("rules.yaml", "ray_gnp_items_failed_total", "ray_gnp_item_failed_total", "GnpItemsGivenUp"),
        ("rules.yaml", "cause!=", "couse!=", "has no label couse"),
        ("rules.yaml", "sum by (run) (ray_gnp_workers)", "sum by (run (ray_gnp_workers)", "GnpNoWorkers"),
        ("rules.yaml", "runbook.md#gnpstalled", "runbook.md#gnpstaled", "GnpStalled"),
        ("rules.test.yaml", "alertname: GnpStoreSlow", "alertnam: GnpStoreSlow", "alertnam"),
        ("rules.test.yaml", 'values: "7x60"', 'values: "0x60"', "GnpNoWorkers"),
        ("rules.yaml", "kube_cronjob_created", "kube_cronjobs_created", "GnpNightMissed"),
        ("prometheus.yaml", "dns_sd_configs", "dns_sd_config", "dns_sd_config"),
    ],
)
def test_a_typo_is_found_and_named(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    shutil.copytree(FOLDER, tmp_path / "prometheus")
    path = tmp_path / "prometheus" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    (fault, *_) = alerts.alerts(tmp_path / "prometheus", RUNBOOK)
    assert fault.startswith((f"{file}: ", "rules.test.yaml: ")), fault
    assert message in fault


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ray_gnp_items_left", "ray_gnp_item_left", "ray_gnp_item_left: unknown metric"),
        ("legendFormat", "legendFormt", "panels.targets.legendFormt: not a field that Grafana reads"),
        ('"timeseries"', '"timeserie"', "timeserie: not a panel type"),
        ('"panels": [', '"panels": [,', "Expecting value"),
    ],
)
def test_a_dashboard_s_typo_is_found_and_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in DASHBOARD.read_text()
    (path := tmp_path / "gnp.json").write_text(DASHBOARD.read_text().replace(old, new))
    assert any(message in fault for fault in alerts.dashboard(path))
