"""Looking through everything in an object."""

from collections.abc import Iterator
from typing import Any


def nodes(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields everything in an object, with the path to it, from the top down."""
    yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from nodes(child, (*path, str(name)))
