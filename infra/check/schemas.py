"""Whether an object has what the schema of its kind asks for, and nothing that the schema does not know."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator

Document = dict[str, Any]
Schemas = dict[tuple[str, str], Draft202012Validator]

# The Kubernetes whose built-in kinds are meant.
_KUBERNETES = "1.37"


def load(folder: Path) -> Schemas:
    """Reads the schemas of custom resources, by apiVersion and kind.

    Args:
        folder: JSON files with `group`, `version`, `kind` and `openAPIV3Schema`; or as a cluster hands them out, by
            `kubectl get crd rayjobs.ray.io -o json`.

    Raises:
        FileNotFoundError: There are none.
    """
    found = [
        each for path in sorted(folder.glob("*.json")) for each in _of_versions(json.loads(path.read_text("utf-8")))
    ]
    if not found:
        raise FileNotFoundError(f"{folder}: no *.json, which would be the schemas")
    return {
        (f"{group}/{version}", kind): Draft202012Validator(strict(schema)) for group, version, kind, schema in found
    }


def _of_versions(file: Document) -> Iterator[tuple[str, str, str, Document]]:
    """Group, version, kind and schema of what a file holds."""
    if "spec" not in file:
        yield file["group"], file["version"], file["kind"], file["openAPIV3Schema"]
        return
    spec = file["spec"]
    for version in spec["versions"]:
        yield spec["group"], version["name"], spec["names"]["kind"], version["schema"]["openAPIV3Schema"]


def strict(schema: Document) -> Document:
    """The schema, refusing every field that it does not name.

    A cluster drops such fields without a word, but where the schema says x-kubernetes-preserve-unknown-fields. What is
    x-kubernetes-int-or-string needs nothing: it has an `anyOf` of both.
    """
    made = dict(schema)
    if "properties" in schema:
        made["properties"] = {name: strict(each) for name, each in schema["properties"].items()}
        made["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = strict(schema["items"])
    return made


def misfits(document: Document, schemas: Schemas) -> Iterator[str]:
    """Yields `path: what` for each field that is not as the schema of the object's kind has it.

    Where no schemas of custom resources are given, of KubeRay's objects the metadata alone are judged.
    """
    if "apiVersion" not in document:
        yield f"top: no apiVersion among {', '.join(document)}"
        return
    schema = schemas.get((document["apiVersion"], document["kind"]))
    if schema is None and (schemas or not document["apiVersion"].startswith("ray.io/")):
        yield from _built_in(document)
        return
    # These schemas leave `metadata` open: it is judged as that of an object that has nothing else.
    yield from _built_in({"apiVersion": "v1", "kind": "ConfigMap", "metadata": document.get("metadata")})
    for error in schema.iter_errors(document) if schema else ():
        yield _told(error)


def _built_in(document: Document) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, _KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield _told(error)
    except kubernetes_validate.SchemaNotFoundError:
        yield f"kind: no schema for {document['kind']} of {document['apiVersion']}"


def _told(error: Any) -> str:
    return f"{'.'.join(map(str, error.absolute_path)) or 'top'}: {error.message}"
