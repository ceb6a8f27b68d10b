"""Whether what Kubernetes objects say of each other, of Ray and of gnp is there: of all this no schema knows."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from infra.check import commands
from infra.check.nodes import nodes
from infra.check.schemas import Document, Schemas
from pipeline.errors import RecipeError
from pipeline.plan import recipe
from pipeline.plan.pools import RESOURCES

# Whoever runs it makes these, and lets them be absent.
_SECRETS = {"gnp-credentials"}


def dangling(documents: Sequence[Document], schemas: Schemas) -> Iterator[str]:
    """Yields `Kind/name: path: what` for what objects that are applied together name, and what is not there.

    Args:
        documents: Each fits its schema.
        schemas: Of custom resources.
    """
    resources = {(version.partition("/")[0], f"{kind.lower()}s") for version, kind in schemas}
    ports = {port["containerPort"] for document in documents for _, node in nodes(document) for port in _ports(node)}
    there = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    pods = [labels for document in documents for labels in _labels(document)]
    for (kind, name), document in there.items():
        faults = [
            *_missing(document, set(there)),
            *_unlabelled(document, pods),
            *_misled(document, there),
            *_closed(document, ports),
            *(f"rules: {group}/{each}: no such resource" for group, each in _ruled(document) - resources),
        ]
        yield from (f"{kind}/{name}: {fault}" for fault in faults)


def _missing(document: Document, there: set[tuple[str, str]]) -> Iterator[str]:
    """Names of objects and of volumes that are not there."""
    for path, node in nodes(document):
        where, key = ".".join(path), path[-1] if path else ""
        named: tuple[str, str] | None = None
        if key in ("configMap", "configMapRef", "configMapKeyRef"):
            named = "ConfigMap", node["name"]
        elif key == "serviceAccountName":
            named = "ServiceAccount", node
        elif key == "roleRef" or path[-2:-1] == ("subjects",):
            named = node["kind"], node["name"]
        elif key in ("secretRef", "secretKeyRef") and (node["name"] not in _SECRETS or not node.get("optional")):
            yield f"{where}: {node['name']}: not one of {', '.join(_SECRETS)}, or not optional"
        elif isinstance(node, dict) and "containers" in node:
            volumes = {volume["name"] for volume in node.get("volumes", [])}
            mounts = [mount for each in node["containers"] for mount in each.get("volumeMounts", [])]
            yield from (f"{where}: no volume {each['name']}" for each in mounts if each["name"] not in volumes)
        if named is not None and named not in there:
            yield f"{where}: there is no {named[0]} {named[1]}"


def _ruled(document: Document) -> set[tuple[str, str]]:
    """Group and resource of all that a Role is about."""
    rules = document["rules"] if document["kind"] == "Role" else []
    return {(group, each) for rule in rules for group in rule["apiGroups"] for each in rule["resources"]}


def _ports(node: Any) -> list[dict[str, Any]]:
    """What a container listens on."""
    found: list[dict[str, Any]] = node.get("ports", []) if isinstance(node, dict) and "image" in node else []
    return found


def _closed(document: Document, ports: set[int]) -> Iterator[str]:
    """Ports that are let in to, or named by a Service, and on which no container listens."""
    ingress = document["spec"].get("ingress", []) if document["kind"] == "NetworkPolicy" else []
    let_in = ingress or ([document["spec"]] if document["kind"] == "Service" else [])
    for port in (port["port"] for rule in let_in for port in rule.get("ports", [])):
        if port not in ports:
            yield f"spec: port {port}: no container listens there"


def _labels(document: Document) -> Iterator[dict[str, str]]:
    """The labels of each pod that an object leads to, with Ray's own."""
    for path, node in nodes(document):
        if isinstance(node, dict) and "containers" in node.get("spec", {}):
            group = {"headGroupSpec": "head", "workerGroupSpecs": "worker"}
            kinds = [group[part] for part in path if part in group]
            own = {"ray.io/is-ray-node": "yes", "ray.io/node-type": kinds[0]} if kinds else {}
            yield {**node["metadata"].get("labels", {}), **own}


def _unlabelled(document: Document, pods: Sequence[dict[str, str]]) -> Iterator[str]:
    """Selectors of this namespace that no pod answers to."""
    for path, node in nodes(document):
        if path[-1:] in (("podSelector",), ("selector",)) and not _elsewhere(document, path):
            wanted = (node if document["kind"] == "Service" else node.get("matchLabels", {})).items()
            if not any(wanted <= labels.items() for labels in pods):
                yield f"{'.'.join(path)}: {dict(wanted)}: no pod has these labels"


def _elsewhere(document: Document, path: tuple[str, ...]) -> bool:
    """Whether a selector stands beside one of namespaces."""
    found: Any = document
    for part in path[:-1]:
        found = found[int(part)] if isinstance(found, list) else found[part]
    return "namespaceSelector" in found


def _misled(document: Document, there: dict[tuple[str, str], Document]) -> Iterator[str]:
    """What Ray or gnp would not take: options, resources, commands, recipes."""
    for path, node in nodes(document):
        where = ".".join(path)
        if path[-1:] == ("rayVersion",) and node != metadata.version("ray"):
            yield f"{where}: {node}: the image has {metadata.version('ray')}"
        elif path[-1:] == ("rayStartParams",):
            yield from (f"{where}: {fault}" for fault in commands.unstartable(node))
            yield from (f"{where}.resources: {fault}" for fault in _undeclared(node.get("resources", '"{}"')))
        elif path[-1:] == ("entrypoint",):
            yield from (f"{where}: {fault}" for fault in commands.refused(node))
        elif path[-1:] == ("command",):
            yield from (f"{where}: {fault}" for fault in commands.refused_in(node))
        elif isinstance(node, dict) and "rayClusterSpec" in node:
            head = node["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
            yield from (f"{where}.entrypoint: {fault}" for fault in _not_given(node["entrypoint"], head, there))
    if document["kind"] == "ConfigMap":
        recipes = {name: text for name, text in document["data"].items() if name.endswith(".toml")}
        for name, text in recipes.items():
            yield from (f"data.{name}: {fault}" for fault in _unfit(text))


def _undeclared(text: str) -> Iterator[str]:
    """What KubeRay hands to `ray start --resources`, between its quotes: JSON, in a string of JSON."""
    try:
        yield from (f"{name}: none of ours" for name in json.loads(json.loads(text)).keys() - set(RESOURCES.values()))
    except (ValueError, TypeError, AttributeError) as error:
        yield f"{text}: {error}"


def _not_given(command: str, pod: dict[str, Any], there: dict[tuple[str, str], Document]) -> Iterator[str]:
    """Files and variables of a command that its pod is not given."""
    container = pod["containers"][0]
    maps = {each["name"]: each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each}
    mounted = {mount["mountPath"]: maps.get(mount["name"], "") for mount in container["volumeMounts"]}
    variables = {each["name"] for each in container.get("env", [])}
    for source in container.get("envFrom", []):
        variables |= _data(there, source.get("configMapRef", {}).get("name", "")).keys()
    for word in command.replace('"', " ").replace("'", " ").split():
        if word.startswith("/"):
            path = PurePosixPath(word)
            if path.name not in _data(there, mounted.get(str(path.parent), "")):
                yield f"{word}: no ConfigMap puts it there"
        elif word.startswith("$") and word[1:] not in variables:
            yield f"{word}: not set in the head's pod"


def _data(there: dict[tuple[str, str], Document], name: str) -> dict[str, str]:
    found: dict[str, str] = there.get(("ConfigMap", name), {}).get("data", {})
    return found


def _unfit(text: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        try:
            recipe.load(path)
        except RecipeError as error:
            yield str(error).replace(f"{path}: ", "")
