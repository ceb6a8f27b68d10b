"""Kubernetes manifests: renders the base and every overlay as `kubectl apply -k` would, and checks each object."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from infra.check.references import dangling_references
from infra.check.rules import rule_violations
from infra.check.schemas import Document, Schemas, schema_errors
from infra.check.values import unknown_values

_RENDER_S = 60


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A safe loader that refuses duplicate keys, of which YAML loaders silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for name, _ in node.value:
            if name.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {name.value}", name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def check(folder: Path, schemas: Schemas) -> tuple[str, list[str]]:
    """Checks every file below a folder, and the objects that its base and overlays render.

    Args:
        folder: Has `base/` and `overlays/NAME/`, each with a `kustomization.yaml`.
        schemas: Schemas of custom resources.

    Returns:
        A summary of what was checked, and the faults: `FILE or overlay: Kind/name: path: message`.

    Raises:
        FileNotFoundError: kubectl is not installed.
    """
    files = sorted(folder.rglob("*.yaml"))
    faults: list[str] = []
    objects = 0
    for file in files:
        faults += [f"{file.relative_to(folder)}: {fault}" for fault in _yaml_errors(file)]
    kustomizations = [file.parent for file in files if file.name == "kustomization.yaml"]
    for kustomization in kustomizations:
        name = kustomization.relative_to(folder)
        try:
            documents = render(kustomization)
        except ValueError as error:
            faults.append(f"{name}: {error}")
            continue
        objects += len(documents)
        found = []
        for document in documents:
            label = f"{document['kind']}/{document['metadata']['name']}"
            found += [f"{label}: {fault}" for fault in object_faults(document, schemas)]
        # References can only be followed in objects that fit their schemas.
        found += dangling_references(documents, schemas) if schemas and not found else []
        found += unmatched_targets(kustomization)
        faults += [f"{name}: {fault}" for fault in found]
    return f"{len(files)} files, {len(kustomizations)} kustomizations, {objects} objects", faults


def unmatched_targets(kustomization: Path) -> Iterator[str]:
    """Yields targets of patches and replacements that match no object, which kustomize ignores silently.

    Raises:
        ValueError: kustomize refuses a resource.
    """
    settings = yaml.safe_load((kustomization / "kustomization.yaml").read_text(encoding="utf-8"))
    objects: list[Document] = []
    for resource in settings.get("resources", []):
        path = kustomization / resource
        objects += render(path) if path.is_dir() else yaml.safe_load_all(path.read_text("utf-8"))
    targets = [patch["target"] for patch in settings.get("patches", []) if "target" in patch]
    for replacement in settings.get("replacements", []):
        targets += [replacement["source"], *(target["select"] for target in replacement["targets"])]
    for target in targets:
        if not any(_matches(target, document) for document in objects):
            yield f"kustomization.yaml: {target}: no object has this kind, name and label"


def _matches(target: dict[str, str], document: Document) -> bool:
    name, labels = document["metadata"]["name"], document["metadata"].get("labels", {})
    label, _, value = target.get("labelSelector", "").partition("=")
    return (
        target.get("kind", document["kind"]) == document["kind"]
        and re.fullmatch(target.get("name", ".*"), name) is not None
        and (not label or labels.get(label) == value)
    )


def render(kustomization: Path) -> list[Document]:
    """The objects that `kubectl apply -k` would send.

    Raises:
        ValueError: kustomize refuses the kustomization.
        FileNotFoundError: kubectl is not installed.
    """
    done = subprocess.run(
        ["kubectl", "kustomize", str(kustomization)], capture_output=True, text=True, timeout=_RENDER_S, check=False
    )
    if done.returncode:
        raise ValueError(" ".join(done.stderr.split()))
    return list(yaml.safe_load_all(done.stdout))


def object_faults(document: Document, schemas: Schemas) -> list[str]:
    """The faults of an object: `path: message`."""
    return list(schema_errors(document, schemas)) or [*unknown_values(document), *rule_violations(document)]


def _yaml_errors(file: Path) -> Iterator[str]:
    try:
        list(yaml.load_all(file.read_text(), _Loader))
    except yaml.YAMLError as error:
        yield " ".join(str(error).split())
