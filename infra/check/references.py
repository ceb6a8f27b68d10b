"""References in Kubernetes objects: to each other, to Ray's and gnp's commands and options, and to recipes."""

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
from pipeline.plan.pools import RESOURCES
from pipeline.plan.recipe_reader import load_recipe

# Secrets that the user may create.
_SECRETS = {"gnp-credentials"}


def dangling_references(documents: Sequence[Document], schemas: Schemas) -> Iterator[str]:
    """Yields `Kind/name: path: message` for each reference to something that does not exist.

    Args:
        documents: Objects that are applied together; each fits its schema.
        schemas: Schemas of custom resources.
    """
    resources = {(version.partition("/")[0], f"{kind.lower()}s") for version, kind in schemas}
    ports = {port["containerPort"] for document in documents for _, node in nodes(document) for port in _ports(node)}
    objects = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    pods = [labels for document in documents for labels in _labels(document)]
    for (kind, name), document in objects.items():
        faults = [
            *_missing_objects(document, set(objects)),
            *_unmatched_selectors(document, pods),
            *_invalid_commands(document, objects),
            *_unused_ports(document, ports),
            *(f"rules: {group}/{resource}: no such resource" for group, resource in _role_rules(document) - resources),
        ]
        yield from (f"{kind}/{name}: {fault}" for fault in faults)


def _missing_objects(document: Document, objects: set[tuple[str, str]]) -> Iterator[str]:
    """Yields names of objects and volumes that do not exist."""
    for path, node in nodes(document):
        where, key = ".".join(path), path[-1] if path else ""
        reference: tuple[str, str] | None = None
        if key in ("configMap", "configMapRef", "configMapKeyRef"):
            reference = "ConfigMap", node["name"]
        elif key == "serviceAccountName":
            reference = "ServiceAccount", node
        elif key == "roleRef" or path[-2:-1] == ("subjects",):
            reference = node["kind"], node["name"]
        elif key in ("secretRef", "secretKeyRef") and (node["name"] not in _SECRETS or not node.get("optional")):
            yield f"{where}: {node['name']}: not one of {', '.join(_SECRETS)}, or not optional"
        elif isinstance(node, dict) and "containers" in node:
            volumes = {volume["name"] for volume in node.get("volumes", [])}
            mounts = [mount for container in node["containers"] for mount in container.get("volumeMounts", [])]
            yield from (f"{where}: no volume {mount['name']}" for mount in mounts if mount["name"] not in volumes)
        if reference is not None and reference not in objects:
            yield f"{where}: there is no {reference[0]} {reference[1]}"


def _role_rules(document: Document) -> set[tuple[str, str]]:
    """Group and resource of every rule of a Role."""
    rules = document["rules"] if document["kind"] == "Role" else []
    return {(group, resource) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"]}


def _ports(node: Any) -> list[dict[str, Any]]:
    """The ports of a container."""
    ports: list[dict[str, Any]] = node.get("ports", []) if isinstance(node, dict) and "image" in node else []
    return ports


def _unused_ports(document: Document, ports: set[int]) -> Iterator[str]:
    """Yields ports of network policies and services on which no container listens."""
    ingress = document["spec"].get("ingress", []) if document["kind"] == "NetworkPolicy" else []
    rules = ingress or ([document["spec"]] if document["kind"] == "Service" else [])
    for port in (port["port"] for rule in rules for port in rule.get("ports", [])):
        if port not in ports:
            yield f"spec: port {port}: no container listens there"


def _labels(document: Document) -> Iterator[dict[str, str]]:
    """Yields the labels of each pod template in an object, with the labels that KubeRay adds."""
    for path, node in nodes(document):
        if isinstance(node, dict) and "containers" in node.get("spec", {}):
            group = {"headGroupSpec": "head", "workerGroupSpecs": "worker"}
            kinds = [group[part] for part in path if part in group]
            kuberay = {"ray.io/is-ray-node": "yes", "ray.io/node-type": kinds[0]} if kinds else {}
            yield {**node["metadata"].get("labels", {}), **kuberay}


def _unmatched_selectors(document: Document, pods: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yields selectors of this namespace that match no pod."""
    for path, node in nodes(document):
        if path[-1:] in (("podSelector",), ("selector",)) and not _is_of_other_namespace(document, path):
            selector = (node if document["kind"] == "Service" else node.get("matchLabels", {})).items()
            if not any(selector <= labels.items() for labels in pods):
                yield f"{'.'.join(path)}: {dict(selector)}: no pod has these labels"


def _is_of_other_namespace(document: Document, path: tuple[str, ...]) -> bool:
    """Whether a pod selector comes with a namespace selector."""
    node: Any = document
    for part in path[:-1]:
        node = node[int(part)] if isinstance(node, list) else node[part]
    return "namespaceSelector" in node


def _invalid_commands(document: Document, objects: dict[tuple[str, str], Document]) -> Iterator[str]:
    """Yields options, resources, commands and recipes that Ray or gnp would refuse."""
    for path, node in nodes(document):
        where = ".".join(path)
        if path[-1:] == ("rayVersion",) and node != metadata.version("ray"):
            yield f"{where}: {node}: the image has {metadata.version('ray')}"
        elif path[-1:] == ("rayStartParams",):
            yield from (f"{where}: {fault}" for fault in commands.start_faults(node))
            yield from (f"{where}.resources: {fault}" for fault in _unknown_resources(node.get("resources", '"{}"')))
        elif path[-1:] == ("entrypoint",):
            yield from (f"{where}: {fault}" for fault in commands.command_faults(node))
        elif path[-1:] == ("command",):
            yield from (f"{where}: {fault}" for fault in commands.shell_faults(node))
        elif isinstance(node, dict) and "rayClusterSpec" in node:
            head = node["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
            yield from (f"{where}.entrypoint: {fault}" for fault in _missing_inputs(node["entrypoint"], head, objects))
    if document["kind"] == "ConfigMap":
        recipes = {name: text for name, text in document["data"].items() if name.endswith(".toml")}
        for name, text in recipes.items():
            yield from (f"data.{name}: {fault}" for fault in _recipe_faults(text))


def _unknown_resources(text: str) -> Iterator[str]:
    """Yields unknown names in the value for `ray start --resources`: JSON in a JSON string, as KubeRay passes it."""
    try:
        yield from (
            f"{name}: not a resource of gnp" for name in json.loads(json.loads(text)).keys() - set(RESOURCES.values())
        )
    except (ValueError, TypeError, AttributeError) as error:
        yield f"{text}: {error}"


def _missing_inputs(command: str, pod: dict[str, Any], objects: dict[tuple[str, str], Document]) -> Iterator[str]:
    """Yields files and variables of a command that its pod does not have."""
    container = pod["containers"][0]
    maps = {volume["name"]: volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
    mounted = {mount["mountPath"]: maps.get(mount["name"], "") for mount in container["volumeMounts"]}
    variables = {variable["name"] for variable in container.get("env", [])}
    for source in container.get("envFrom", []):
        variables |= _data(objects, source.get("configMapRef", {}).get("name", "")).keys()
    for word in command.replace('"', " ").replace("'", " ").split():
        if word.startswith("/"):
            path = PurePosixPath(word)
            if path.name not in _data(objects, mounted.get(str(path.parent), "")):
                yield f"{word}: no ConfigMap is mounted there"
        elif word.startswith("$") and word[1:] not in variables:
            yield f"{word}: not set in the head's pod"


def _data(objects: dict[tuple[str, str], Document], name: str) -> dict[str, str]:
    data: dict[str, str] = objects.get(("ConfigMap", name), {}).get("data", {})
    return data


def _recipe_faults(text: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        try:
            load_recipe(path)
        except RecipeError as error:
            yield str(error).replace(f"{path}: ", "")
