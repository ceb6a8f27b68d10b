"""Walks through all nodes of an object."""

from collections.abc import Iterator
from typing import Any


def nodes(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields every node of an object with its path, parents first."""
    yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from nodes(child, (*path, str(name)))
