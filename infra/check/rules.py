"""What no schema says: no secret stands in an object, and every container says what it needs and may take."""

import re
from collections.abc import Iterator
from typing import Any

from infra.check.nodes import nodes
from infra.check.schemas import Document

# A name that ends as those of secrets do, with a value that is no variable's; or what keys look like.
_SECRET = re.compile(
    r"(secret|password|token|access_key)(_key|_id)?[\"']?\s*[=:]\s*[^\s$]"
    r"|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.IGNORECASE,
)

# As Pod Security's level `restricted` wants every container.
_BARE = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def breaches(document: Document) -> Iterator[str]:
    """Yields `path: what` for each rule that an object breaks, whose schema it fits."""
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
        if path[-2:-1] in (("containers",), ("initContainers",)) and node.get("securityContext") != _BARE:
            yield f"{where}.securityContext: the namespace is restricted, and wants {_BARE}"
        if isinstance(node, dict) and "containers" in node and not _restricted(node.get("securityContext", {})):
            yield f"{where}.securityContext: the namespace is restricted: runAsNonRoot, seccompProfile"
        if path[-1:] == ("rayClusterSpec",) and node.get("authOptions") != {"mode": "token"}:
            yield f"{where}.authOptions: no token is asked for: whoever reaches the head may run anything"


def _restricted(context: dict[str, Any]) -> bool:
    return context.get("runAsNonRoot") is True and context.get("seccompProfile") == {"type": "RuntimeDefault"}


def _setting(path: tuple[str, ...], node: Any) -> str:
    """NAME=VALUE, of a field that holds a string, or of a variable of a container."""
    if isinstance(node, str):
        return f"{path[-1]}={node}"
    return f"{node.get('name')}={node['value']}" if isinstance(node, dict) and node.get("value") else ""
