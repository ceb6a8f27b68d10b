"""Grids of attacks: one entry of `[[attacks]]` with lists of values → one entry for each combination of them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

# Each attack is a folder of markers.
MAX_ATTACKS = 1000

# Keys from an entry to a value in it, such as ("gnp", "beta").
_Path = tuple[str, ...]


def expand_lists(entry: Any) -> list[dict[str, Any]]:
    """The entries that one entry of `attacks` stands for: every combination of the values in its lists.

    Raises:
        ValueError: A list of tables, an empty list, or more than `MAX_ATTACKS` combinations.
    """
    if not isinstance(entry, dict):
        return [{"attack": entry}]
    for key, value in entry.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            raise ValueError(f"{key} is a list of tables; lists go inside: {key} = {{ ... = [ ... ] }}")
    lists = _lists(entry)
    count = math.prod(len(values) for values in lists.values())
    if not 1 <= count <= MAX_ATTACKS:
        raise ValueError(f"its lists make {count} attacks; from 1 to {MAX_ATTACKS} can be")
    return [_with_values(entry, dict(zip(lists, values, strict=True))) for values in itertools.product(*lists.values())]


def _lists(entry: Mapping[str, Any]) -> dict[_Path, list[Any]]:
    """The lists of an entry, then those of its tables."""
    tables = {key: table for key, table in entry.items() if isinstance(table, dict)}
    lists: dict[_Path, list[Any]] = {(key,): value for key, value in entry.items() if isinstance(value, list)}
    return lists | {
        (key, inner): value
        for key, table in tables.items()
        for inner, value in table.items()
        if isinstance(value, list)
    }


def _with_values(entry: Mapping[str, Any], values: Mapping[_Path, Any]) -> dict[str, Any]:
    """A copy of an entry with one value in place of each list, and a name that states these values."""
    copy = {key: dict(value) if isinstance(value, dict) else value for key, value in entry.items()}
    for path, value in values.items():
        table = copy[path[0]] if len(path) > 1 else copy
        table[path[-1]] = value
    if values:
        labels = [f"{'.'.join(path)}={value}" for path, value in values.items() if path not in (("attack",), ("name",))]
        copy["name"] = add_labels(str(copy.get("name") or copy.get("attack")), labels)
    return copy


def add_labels(name: str, labels: Sequence[str]) -> str:
    """`gnp+mi` and `gnp.beta=0.4` → `gnp+mi[gnp.beta=0.4]`; that and `steps=20` → `gnp+mi[gnp.beta=0.4,steps=20]`."""
    if not labels:
        return name
    return f"{name.removesuffix(']')}{',' if name.endswith(']') else '['}{','.join(labels)}]"
