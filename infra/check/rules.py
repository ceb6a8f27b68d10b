"""Rules beyond the schemas: no literal secrets; resources, security contexts and token authentication are set."""

import re
from collections.abc import Iterator
from typing import Any

from infra.check.nodes import nodes
from infra.check.schemas import Document

# A name like that of a secret with a literal value; or a value that looks like a key.
_SECRET = re.compile(
    r"(secret|password|token|access_key)(_key|_id)?[\"']?\s*[=:]\s*[^\s$]"
    r"|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.IGNORECASE,
)

# Security context that Pod Security's level `restricted` requires of every container.
_RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def rule_violations(document: Document) -> Iterator[str]:
    """Yields `path: message` for each rule that an object violates; the object must fit its schema."""
    if document["kind"] == "Secret":
        yield "top: a Secret belongs in the cluster, not in a file"
    for path, node in nodes(document):
        where = ".".join(path)
        if _SECRET.search(_setting(path, node)):
            yield f"{where}: a literal secret; refer to a Secret instead"
        if path[-2:-1] in (("containers",), ("initContainers",)) or path[-1:] == ("autoscalerOptions",):
            for kind in ("requests", "limits"):
                missing = {"cpu", "memory"} - node.get("resources", {}).get(kind, {}).keys()
                if missing:
                    yield f"{where}.resources.{kind}: no {' and no '.join(sorted(missing))}"
        if path[-2:-1] in (("containers",), ("initContainers",)) and node.get("securityContext") != _RESTRICTED:
            yield f"{where}.securityContext: the namespace is restricted and requires {_RESTRICTED}"
        if isinstance(node, dict) and "containers" in node and not _is_restricted(node.get("securityContext", {})):
            yield f"{where}.securityContext: the namespace is restricted and requires runAsNonRoot and seccompProfile"
        if path[-1:] == ("rayClusterSpec",) and node.get("authOptions") != {"mode": "token"}:
            yield f"{where}.authOptions: no token authentication: anyone who reaches the head can run code"


def _is_restricted(context: dict[str, Any]) -> bool:
    return context.get("runAsNonRoot") is True and context.get("seccompProfile") == {"type": "RuntimeDefault"}


def _setting(path: tuple[str, ...], node: Any) -> str:
    """NAME=VALUE of a string field, or of a container's environment variable."""
    if isinstance(node, str):
        return f"{path[-1]}={node}"
    return f"{node.get('name')}={node['value']}" if isinstance(node, dict) and node.get("value") else ""
