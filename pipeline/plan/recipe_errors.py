"""Pydantic's validation errors, as one line for each fault, in the terms of the TOML file."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.plan.recipe_fields import SOURCE_TITLES


def fault_lines(error: ValidationError, values: Any, model: type[BaseModel]) -> list[str]:
    """One line for each fault in a recipe, without duplicates: a fault in a grid is reported once.

    Args:
        error: What pydantic raised.
        values: The recipe as parsed from TOML.
        model: What it was validated against.
    """
    faults = error.errors()
    locations = [fault["loc"] for fault in faults]
    # Where entries of a list are refused, pydantic also reports the list as too short: one report is enough.
    reported = [
        fault
        for fault in faults
        if fault["type"] != "too_short" or not any(_lies_in(location, fault["loc"]) for location in locations)
    ]
    return list(dict.fromkeys(one_line(_describe(fault, values, model)) for fault in reported))


def children(value: Any) -> Iterable[tuple[Any, Any]]:
    """The keys and values of a TOML table, or the indices and items of a list; nothing for other values."""
    return value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()


def dotted(location: Iterable[Any]) -> str:
    """A location as a dotted key: `attacks.1.gnp.r`."""
    return ".".join(str(step) for step in location)


def one_line(text: str) -> str:
    """Text with line breaks and other control characters escaped, cut after 2,000 characters."""
    plain = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text[:2000])
    return plain + "…" * (len(text) > 2000)


def _lies_in(location: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return location[: len(outer)] == outer != location


def _describe(fault: Any, values: Any, model: type[BaseModel]) -> str:
    """One of pydantic's faults: its place in the recipe, the value, and what would be accepted."""
    location = dotted(_toml_steps(fault["loc"], values)) or "recipe"
    message = fault["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{location}: unknown key{_suggestion(str(fault['loc'][-1]), fault['loc'][:-1], model)}"
    if fault["type"] == "missing":
        return f"{location}: missing; it has no default"
    if fault["type"] == "value_error":
        return f"{location}: {message}"
    if fault["type"] == "too_short":
        message = "is empty; at least one is wanted"
    if fault["type"] == "dataclass_type":
        message = "a table is wanted, such as { ... }"
    return f"{location} = {fault['input']!r}: {message[0].lower()}{message[1:]}"


def _toml_steps(location: Iterable[Any], values: Any) -> Iterator[Any]:
    """The steps of a location that the recipe contains; pydantic's also count the points of grids and name types."""
    for step in location:
        if isinstance(step, str) and isinstance(values, dict) and step not in SOURCE_TITLES:
            yield step
            values = values.get(step)
        elif isinstance(step, int) and isinstance(values, list) and step < len(values):
            yield step
            values = values[step]


def _suggestion(key: str, location: Iterable[Any], model: type[BaseModel]) -> str:
    """The known key most similar to an unknown one, or all known keys at its location."""
    schema = model.model_json_schema()
    nodes: list[Mapping[str, Any]] = [schema]
    for step in location:
        if step in SOURCE_TITLES:
            nodes = [node for node in nodes if node.get("title") == SOURCE_TITLES[step]]
        else:
            nodes = [inner for node in nodes for inner in _schemas_at(node, step, schema["$defs"])]
    known = list(dict.fromkeys(name for node in nodes for name in node.get("properties", {})))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _schemas_at(node: Mapping[str, Any], step: Any, definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The alternative JSON schemas of a key or list item of a schema."""
    inner = node.get("items", {}) if isinstance(step, int) else node.get("properties", {}).get(step, {})
    for option in (inner, *inner.get("anyOf", ()), *inner.get("oneOf", ())):
        yield definitions[option["$ref"].rsplit("/", 1)[1]] if "$ref" in option else option
