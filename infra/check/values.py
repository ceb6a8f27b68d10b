"""Values that schemas leave open: enumerations, labels, schedules, time zones and quantities."""

import re
import zoneinfo
from collections.abc import Iterator
from typing import Any

from infra.check.nodes import nodes
from infra.check.schemas import Document

# Field → its values in the API reference.
_ENUMS = {
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "policyTypes": {"Ingress", "Egress"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "operator": {"Exists", "Equal", "In", "NotIn", "DoesNotExist"},
    "medium": {"", "Memory", "HugePages"},
    "unhealthyPodEvictionPolicy": {"AlwaysAllow", "IfHealthyBudget"},
    "verbs": {"get", "list", "watch", "create", "update", "patch", "delete"},
}
# Label, annotation or node selector → the values that its readers know.
_LABELS = {
    "app.kubernetes.io/part-of": r"gnp",
    "app.kubernetes.io/component": r"nightly|kuberay-operator",
    "app.kubernetes.io/name": r"prometheus",
    "batch.kubernetes.io/.*": r".*",
    "eks.amazonaws.com/capacityType": r"ON_DEMAND|SPOT",
    "eks.amazonaws.com/role-arn": r"arn:aws:iam::\d{12}:role/[\w+=,.@/-]+",
    "kueue.x-k8s.io/queue-name": r"[a-z0-9-]+",
    "pod-security.kubernetes.io/(enforce|warn)": r"restricted",
    "ray.io/(node-type|is-ray-node)": r"head|worker|yes",
}
_MAPS = ("labels", "annotations", "matchLabels", "nodeSelector")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_RESOURCES = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}
_SCALES = {"m": 1e-3, None: 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGT", 1)
}


def unknown_values(document: Document) -> Iterator[str]:
    """Yields `path: message` for each value that its reader does not know."""
    for path, node in nodes(document):
        where, key = ".".join(path), path[-1] if path else ""
        if key in _ENUMS:
            yield from (
                f"{where}: {value}: not one of {', '.join(sorted(_ENUMS[key] - {''}))}"
                for value in (node if isinstance(node, list) else [node])
                if value not in _ENUMS[key]
            )
        elif key in _MAPS and isinstance(node, dict):
            yield from (
                f"{where}: {name}: {value}: unknown label" for name, value in node.items() if not _is_known(name, value)
            )
        elif key == "schedule" and not _is_cron(node):
            yield f"{where}: {node}: not a cron schedule: minute, hour, day, month, weekday"
        elif key == "timeZone" and node not in zoneinfo.available_timezones():
            yield f"{where}: {node}: not a time zone"
        elif key == "resources" and isinstance(node, dict) and "requests" in node:
            yield from (f"{where}: {fault}" for fault in _resource_faults(node["requests"], node.get("limits", {})))
        elif key in ("activeDeadlineSeconds", "maxReplicas") and node < 1:
            yield f"{where}: {node}: must be at least 1"


def _is_known(name: str, value: Any) -> bool:
    return any(re.fullmatch(key, name) and re.fullmatch(values, str(value)) for key, values in _LABELS.items())


def _is_cron(schedule: str) -> bool:
    ranges = (0, 59), (0, 23), (1, 31), (1, 12), (0, 7)
    fields = schedule.split()
    return len(fields) == len(ranges) and all(
        re.fullmatch(r"(\*|\d+(-\d+)?)(/\d+)?(,\d+)*", field) is not None
        and all(low <= int(number) <= high for number in re.findall(r"(?<!/)\b\d+", field))
        for field, (low, high) in zip(fields, ranges, strict=True)
    )


def _resource_faults(requests: dict[str, Any], limits: dict[str, Any]) -> Iterator[str]:
    """Yields unknown resources, malformed quantities, and requests above their limits."""
    for name in requests.keys() | limits.keys():
        if name not in _RESOURCES:
            yield f"{name}: unknown resource"
            continue
        request, limit = (_QUANTITY.fullmatch(str(values.get(name, "0"))) for values in (requests, limits))
        if request is None or limit is None:
            yield f"{name}: {requests.get(name)}, {limits.get(name)}: not a quantity"
        elif name in limits and float(request[1]) * _SCALES[request[2]] > float(limit[1]) * _SCALES[limit[2]]:
            yield f"{name}: {requests.get(name)}: above its limit of {limits[name]}"
        elif "/" in name and requests.get(name) != limits.get(name):
            yield f"{name}: request and limit of a device must be equal"
