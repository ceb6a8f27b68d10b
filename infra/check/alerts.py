"""Alert rules and the dashboard: their metrics and labels exist, and the runbook has a section per alert."""

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

_LABELS = {metrics.exported(metric): set(metric.info["tag_keys"]) for metric in metrics.ALL}
# Metrics of kube-state-metrics on CronJobs.
_LABELS |= {f"kube_cronjob_{name}": {"namespace", "cronjob"} for name in ("created", "status_last_successful_time")}
# Fields of Grafana dashboards that are used here, by path.
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
_FIELDS = {f"{path}.{name}".lstrip(".") for path, names in _DASHBOARD.items() for name in names.split()}
_PANELS = {"stat", "timeseries"}


def alerts(folder: Path, runbook: Path) -> list[str]:
    """Faults of rules.yaml, its test and the Prometheus configuration, a line per fault.

    Raises:
        FileNotFoundError: promtool is not installed.
    """
    rules = folder / "rules.yaml"
    if shutil.which("promtool") is None:
        raise FileNotFoundError("promtool, a part of Prometheus, is not on PATH")
    for command, file in (
        (["check", "rules"], rules),
        (["test", "rules"], folder / "rules.test.yaml"),
        (["check", "config"], folder / "prometheus.yaml"),
    ):
        done = subprocess.run(["promtool", *command, file], capture_output=True, text=True, check=False)
        if done.returncode:
            output = " ".join((done.stderr + done.stdout).split())
            return [f"{file.name}: {output}"]
    sections = re.findall(r"^## (\w+)$", runbook.read_text(encoding="utf-8"), re.MULTILINE)
    faults = []
    for rule in (rule for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]):
        faults += [f"rules.yaml: {rule['alert']}: {fault}" for fault in query_faults(rule["expr"])]
        anchor = f"docs/{runbook.name}#{rule['alert'].lower()}"
        if rule["alert"] not in sections or rule["annotations"].get("runbook") != anchor:
            faults.append(f"rules.yaml: {rule['alert']}: no section of that name in {runbook.name}, or no link to it")
    return faults


def dashboard(file: Path) -> list[str]:
    """Faults of the dashboard's fields and queries, a line per fault."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"{file.name}: {error}"]
    faults = [f"{file.name}: {path}: not a field that Grafana reads" for path in sorted(set(_paths(content)) - _FIELDS)]
    if faults:
        return faults
    for panel in content["panels"]:
        label = f"{file.name}: {panel['title']}"
        if panel["type"] not in _PANELS:
            faults.append(f"{label}: {panel['type']}: not a panel type that is used here")
        faults += [f"{label}: {fault}" for target in panel["targets"] for fault in query_faults(target["expr"])]
    return faults


def _paths(node: Any, path: str = "") -> Iterator[str]:
    """Yields the path of every field; lists add nothing to the path."""
    for name, child in node.items() if isinstance(node, dict) else ():
        yield f"{path}{name}"
        yield from _paths(child, f"{path}{name}.")
    for child in node if isinstance(node, list) else ():
        yield from _paths(child, path)


def query_faults(query: str) -> Iterator[str]:
    """Yields each unknown metric and label of a query, or its syntax error."""
    try:
        selectors = list(_selectors(query))
    except ValueError as error:
        yield f"not PromQL ({error})"
        return
    known: set[str] = set()
    for selector in selectors:
        name = str(selector.name)
        if name not in _LABELS:
            yield f"{name}: unknown metric"
            continue
        known |= _LABELS[name]
        yield from (
            f"{name}: has no label {matcher.name}"
            for matcher in selector.matchers.matchers
            if matcher.name not in _LABELS[name]
        )
    for label in {label for labels in re.findall(r"by \((.*?)\)", query) for label in labels.split(", ")} - known:
        yield f"by ({label}): no metric of the query has this label"


def _selectors(query: str) -> list[promql_parser.VectorSelector]:
    selectors: list[promql_parser.VectorSelector] = []

    def visit(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return selectors
