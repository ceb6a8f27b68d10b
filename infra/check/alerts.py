"""Alert rules and the dashboard: what they ask for is what runs tell, and what to do about each alert is written."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from pipeline.engine import metrics

_TOLD = {metrics.exported(metric): set(metric.info["tag_keys"]) for metric in metrics.ALL}
# What kube-state-metrics tells of a CronJob.
_TOLD |= {f"kube_cronjob_{name}": {"namespace", "cronjob"} for name in ("created", "status_last_successful_time")}
# What Grafana reads of a dashboard, as far as it is used here: a place, and what may stand there.
_DASHBOARD = {
    "": "annotations panels refresh schemaVersion tags templating time timezone title uid version",
    "annotations": "list",
    "panels": "datasource description fieldConfig gridPos id options targets title type",
    "panels.datasource": "type uid",
    "panels.fieldConfig": "defaults overrides",
    "panels.fieldConfig.defaults": "custom decimals max min unit",
    "panels.fieldConfig.defaults.custom": "fillOpacity stacking",
    "panels.fieldConfig.defaults.custom.stacking": "mode",
    "panels.gridPos": "h w x y",
    "panels.options": "legend reduceOptions tooltip",
    "panels.options.legend": "displayMode placement",
    "panels.options.reduceOptions": "calcs",
    "panels.options.tooltip": "mode",
    "panels.targets": "expr legendFormat refId",
    "templating": "list",
    "templating.list": "current datasource includeAll label multi name query refresh type",
    "templating.list.current": "text value",
    "templating.list.datasource": "type uid",
    "templating.list.query": "query refId",
    "time": "from to",
}
_FIELDS = {f"{place}.{name}".lstrip(".") for place, names in _DASHBOARD.items() for name in names.split()}
_PANELS = {"stat", "timeseries"}


def alerts(folder: Path, runbook: Path) -> list[str]:
    """Faults of rules.yaml, of its test, and of the configuration that reads it, a line each.

    Raises:
        FileNotFoundError: There is no promtool.
    """
    rules = folder / "rules.yaml"
    if shutil.which("promtool") is None:
        raise FileNotFoundError("promtool, which comes with Prometheus, is not on PATH")
    for command, file in (
        (["check", "rules"], rules),
        (["test", "rules"], folder / "rules.test.yaml"),
        (["check", "config"], folder / "prometheus.yaml"),
    ):
        done = subprocess.run(["promtool", *command, file], capture_output=True, text=True, check=False)
        if done.returncode:
            said = " ".join((done.stderr + done.stdout).split())
            return [f"{file.name}: {said}"]
    sections = re.findall(r"^## (\w+)$", runbook.read_text(encoding="utf-8"), re.MULTILINE)
    found = []
    for rule in (rule for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]):
        found += [f"rules.yaml: {rule['alert']}: {fault}" for fault in unknown(rule["expr"])]
        anchor = f"docs/{runbook.name}#{rule['alert'].lower()}"
        if rule["alert"] not in sections or rule["annotations"].get("runbook") != anchor:
            found.append(f"rules.yaml: {rule['alert']}: no section of that name in {runbook.name}, or no link to it")
    return found


def dashboard(file: Path) -> list[str]:
    """Faults of the dashboard's fields and queries, a line each."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"{file.name}: {error}"]
    faults = [f"{file.name}: {path}: Grafana reads no such field" for path in sorted(set(_paths(told)) - _FIELDS)]
    if faults:
        return faults
    for panel in told["panels"]:
        named = f"{file.name}: {panel['title']}"
        if panel["type"] not in _PANELS:
            faults.append(f"{named}: {panel['type']}: no kind of panel that is used here")
        faults += [f"{named}: {fault}" for target in panel["targets"] for fault in unknown(target["expr"])]
    return faults


def _paths(node: Any, path: str = "") -> Iterator[str]:
    """Yields the path of every field, through lists as if these were not there."""
    for name, child in node.items() if isinstance(node, dict) else ():
        yield f"{path}{name}"
        yield from _paths(child, f"{path}{name}.")
    for child in node if isinstance(node, list) else ():
        yield from _paths(child, path)


def unknown(query: str) -> Iterator[str]:
    """Yields each metric and label of a query that no run tells; or why it is no query."""
    try:
        selectors = list(_selectors(query))
    except ValueError as error:
        yield f"no PromQL ({error})"
        return
    known: set[str] = set()
    for selector in selectors:
        name = str(selector.name)
        if name not in _TOLD:
            yield f"{name}: no metric of a run"
            continue
        known |= _TOLD[name]
        yield from (
            f"{name}: has no label {matcher.name}"
            for matcher in selector.matchers.matchers
            if matcher.name not in _TOLD[name]
        )
    for label in {label for labels in re.findall(r"by \((.*?)\)", query) for label in labels.split(", ")} - known:
        yield f"by ({label}): no label of what is asked for"


def _selectors(query: str) -> list[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def look(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(query), look)
    return found
