"""Renders the base and every overlay as `kubectl apply -k` would, and checks each object in them."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from infra.check.references import dangling
from infra.check.rules import breaches
from infra.check.schemas import Document, Schemas, misfits
from infra.check.values import unknown

_RENDER_S = 60


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A safe loader that refuses a key that stands twice, of which YAML's readers silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for name, _ in node.value:
            if name.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name.value} stands twice", name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def check(folder: Path, schemas: Schemas) -> tuple[str, list[str]]:
    """Checks every file below a folder, and what the base and the overlays in it make of them.

    Args:
        folder: Has `base/` and `overlays/NAME/`, each with a `kustomization.yaml`.
        schemas: Of custom resources.

    Returns:
        What was checked, in words, and the faults: `FILE or overlay: Kind/name: path: what`.

    Raises:
        FileNotFoundError: There is no kubectl.
    """
    files, faults, objects = sorted(folder.rglob("*.yaml")), [], 0
    for file in files:
        faults += [f"{file.relative_to(folder)}: {fault}" for fault in _unreadable(file)]
    places = [file.parent for file in files if file.name == "kustomization.yaml"]
    for place in places:
        try:
            documents = render(place)
        except ValueError as error:
            faults.append(f"{place.relative_to(folder)}: {error}")
            continue
        objects += len(documents)
        of_this = []
        for document in documents:
            named = f"{document['kind']}/{document['metadata']['name']}"
            of_this += [f"{named}: {fault}" for fault in judge(document, schemas)]
        # What does not fit its schema, or was not held against one, cannot be followed.
        of_this += dangling(documents, schemas) if schemas and not of_this else []
        of_this += aimless(place)
        faults += [f"{place.relative_to(folder)}: {fault}" for fault in of_this]
    return f"{len(files)} files, {len(places)} kustomizations, {objects} objects", faults


def aimless(place: Path) -> Iterator[str]:
    """Yields the patches and replacements of a kustomization that change nothing, of which kustomize says nothing.

    Raises:
        ValueError: kustomize refuses what it is made of.
    """
    told = yaml.safe_load((place / "kustomization.yaml").read_text(encoding="utf-8"))
    objects = [
        document
        for each in told.get("resources", [])
        for document in (
            render(place / each) if (place / each).is_dir() else yaml.safe_load_all((place / each).read_text("utf-8"))
        )
    ]
    targets = [patch["target"] for patch in told.get("patches", []) if "target" in patch]
    for each in told.get("replacements", []):
        targets += [each["source"], *(target["select"] for target in each["targets"])]
    for target in targets:
        if not any(_aimed_at(target, document) for document in objects):
            yield f"kustomization.yaml: {target}: nothing is of that kind, name or label"


def _aimed_at(target: dict[str, str], document: Document) -> bool:
    name, labels = document["metadata"]["name"], document["metadata"].get("labels", {})
    label, _, value = target.get("labelSelector", "").partition("=")
    return (
        target.get("kind", document["kind"]) == document["kind"]
        and re.fullmatch(target.get("name", ".*"), name) is not None
        and (not label or labels.get(label) == value)
    )


def render(place: Path) -> list[Document]:
    """What `kubectl apply -k` would send.

    Raises:
        ValueError: kustomize refuses it.
        FileNotFoundError: There is no kubectl.
    """
    done = subprocess.run(
        ["kubectl", "kustomize", str(place)], capture_output=True, text=True, timeout=_RENDER_S, check=False
    )
    if done.returncode:
        raise ValueError(" ".join(done.stderr.split()))
    return list(yaml.safe_load_all(done.stdout))


def judge(document: Document, schemas: Schemas) -> list[str]:
    """What is wrong with an object: `path: what`."""
    return list(misfits(document, schemas)) or [*unknown(document), *breaches(document)]


def _unreadable(file: Path) -> Iterator[str]:
    try:
        list(yaml.load_all(file.read_text(), _Loader))
    except yaml.YAMLError as error:
        yield " ".join(str(error).split())
