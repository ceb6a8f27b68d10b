"""Validates Kubernetes objects strictly against the schemas of their kinds: unknown fields are errors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator

Document = dict[str, Any]
Schemas = dict[tuple[str, str], Draft202012Validator]

# Kubernetes version of the built-in kinds.
_KUBERNETES = "1.37"


def load(folder: Path) -> Schemas:
    """Reads the schemas of custom resources, by apiVersion and kind.

    Args:
        folder: JSON files with `group`, `version`, `kind` and `openAPIV3Schema`; or the output of
            `kubectl get crd rayjobs.ray.io -o json`.

    Raises:
        FileNotFoundError: The folder has no JSON files.
    """
    schemas = {}
    for path in sorted(folder.glob("*.json")):
        for group, version, kind, schema in _versions(json.loads(path.read_text("utf-8"))):
            schemas[f"{group}/{version}", kind] = Draft202012Validator(strict(schema))
    if not schemas:
        raise FileNotFoundError(f"{folder}: no *.json with schemas")
    return schemas


def _versions(file: Document) -> Iterator[tuple[str, str, str, Document]]:
    """Yields group, version, kind and schema of every version in a file."""
    if "spec" not in file:
        yield file["group"], file["version"], file["kind"], file["openAPIV3Schema"]
        return
    spec = file["spec"]
    for version in spec["versions"]:
        yield spec["group"], version["name"], spec["names"]["kind"], version["schema"]["openAPIV3Schema"]


def strict(schema: Document) -> Document:
    """A copy of the schema that refuses unknown fields.

    A cluster drops such fields silently, unless the schema has x-kubernetes-preserve-unknown-fields. Fields with
    x-kubernetes-int-or-string need no change: they have an `anyOf` of both types.
    """
    strict_schema = dict(schema)
    if "properties" in schema:
        strict_schema["properties"] = {name: strict(field) for name, field in schema["properties"].items()}
        strict_schema["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    elif isinstance(schema.get("additionalProperties"), dict):
        strict_schema["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        strict_schema["items"] = strict(schema["items"])
    return strict_schema


def schema_errors(document: Document, schemas: Schemas) -> Iterator[str]:
    """Yields `path: message` for each field that does not fit the schema of the object's kind.

    Without schemas of custom resources, only the metadata of KubeRay's objects is validated.
    """
    if "apiVersion" not in document:
        yield f"top: no apiVersion among {', '.join(document)}"
        return
    schema = schemas.get((document["apiVersion"], document["kind"]))
    if schema is None and (schemas or not document["apiVersion"].startswith("ray.io/")):
        yield from _built_in_errors(document)
        return
    # The schemas of custom resources do not cover `metadata`: it is validated as that of an empty ConfigMap.
    yield from _built_in_errors({"apiVersion": "v1", "kind": "ConfigMap", "metadata": document.get("metadata")})
    for error in schema.iter_errors(document) if schema else ():
        yield _message(error)


def _built_in_errors(document: Document) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, _KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield _message(error)
    except kubernetes_validate.SchemaNotFoundError:
        yield f"kind: no schema for {document['kind']} of {document['apiVersion']}"


def _message(error: Any) -> str:
    return f"{'.'.join(map(str, error.absolute_path)) or 'top'}: {error.message}"
