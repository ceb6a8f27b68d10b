"""`make reference`: generates the reference tables of docs/ (commands, recipe settings, columns, metrics) from code.

Replaces the text between `<!-- generated: NAME -->` and `<!-- end -->` in every page.
"""

import inspect
import re
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import docstring_parser
import typer
from typer.cli import get_docs_for_click

from jobs import cli  # noqa: F401  # all commands
from jobs.app import app
from pipeline.attack.recipe import GRADIENT_TRANSFORMS, INPUT_TRANSFORMS
from pipeline.data import codec
from pipeline.engine import metrics
from pipeline.models import spec
from pipeline.models.defenses import DEFENSES
from pipeline.plan import data_spec, pools, recipe
from pipeline.results import schema as results
from pipeline.training import recipe as settings
from pipeline.training import recipe_reader as training_recipe

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FILES = {kind.__name__: kind.model_json_schema() for kind in (recipe.Recipe, training_recipe.TrainingRecipeFile)}
_TABLES = {name: table for schema in _FILES.values() for name, table in schema["$defs"].items()}
# Headings of the models that have a table of their own, in recipe.md and in training.md.
_HEADINGS = {
    "Preparation": "preparation",
    "ModelSpec": "sources",
    "EnsembleSpec": "ensembles",
    "AttackEntry": "attacks",
}
_HEADINGS |= {"TargetSpec": "targets", "DataSpec": "data", "Budget": "budget", "Pools": "engine"}
_HEADINGS |= {kind.__name__: name for name, kind in {**INPUT_TRANSFORMS, **GRADIENT_TRANSFORMS, **DEFENSES}.items()}
_TRAINING_HEADINGS = {
    "TrainingData": "training-data",
    "HeldOutSet": "held-out",
    "Schedule": "schedule",
    "Workers": "workers",
}


def fill_blocks(page: str) -> str:
    """A page with the current text in every generated block."""
    return _BLOCK.sub(lambda match: match[1] + block_text(match[2]).rstrip() + "\n" + match[3], page)


def block_text(name: str) -> str:
    """The text of a block: one of the named ones, or the settings of the recipe model of that name."""
    blocks: dict[str, Callable[[], str]] = {
        "commands": _commands,
        "columns": _columns,
        "metrics": _metrics,
        "parts": lambda: _sections({**INPUT_TRANSFORMS, **GRADIENT_TRANSFORMS}),
        "defenses": lambda: _sections(DEFENSES),
    }
    return blocks[name]() if name in blocks else _settings(name)


def _settings(name: str) -> str:
    """The table of the fields of a recipe model."""
    schema = _FILES.get(name) or _TABLES[name]
    descriptions = _descriptions(_kind(name))
    rows = [
        (
            f"`{field}`",
            _type(node),
            _default(node, required=field in schema.get("required", ())),
            descriptions.get(field, ""),
        )
        for field, node in schema["properties"].items()
    ]
    return _table(("key", "type", "default", "description"), rows)


def _sections(kinds: Mapping[str, type]) -> str:
    """A heading, a summary and a table of settings for each class."""
    return "\n".join(f"### {name}\n\n{_summary(kind)}\n\n{_settings(kind.__name__)}" for name, kind in kinds.items())


def _kind(name: str) -> Any:
    """The class of a recipe model, by its name."""
    classes = {kind.__name__: kind for kind in {**INPUT_TRANSFORMS, **GRADIENT_TRANSFORMS, **DEFENSES}.values()}
    namespaces = [vars(module) for module in (settings, training_recipe, recipe, data_spec, pools, spec, codec)]
    return ChainMap(classes, *namespaces)[name]


def _descriptions(kind: type) -> dict[str, str]:
    """Descriptions of a class's fields, inherited ones too, from the docstrings."""
    descriptions: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__doc__ and base.__module__.startswith("pipeline"):
            parsed = docstring_parser.parse(inspect.cleandoc(base.__doc__), docstring_parser.DocstringStyle.GOOGLE)
            descriptions |= {param.arg_name: param.description or "" for param in parsed.params}
    parts = {**INPUT_TRANSFORMS, **GRADIENT_TRANSFORMS, **DEFENSES}
    return descriptions | {
        name: f"Settings of `{name}`." for name in parts if name in getattr(kind, "model_fields", ())
    }


def _summary(kind: type) -> str:
    return _first(inspect.getdoc(kind))


def _type(node: Mapping[str, Any]) -> str:
    """The type of a field, from its JSON schema."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        page, heading = (
            ("training.md", _TRAINING_HEADINGS[name]) if name in _TRAINING_HEADINGS else ("recipe.md", _HEADINGS[name])
        )
        return f"a table: [{heading}]({page}#{heading})"
    options = [option for option in node.get("anyOf", node.get("oneOf", [])) if option.get("type") != "null"]
    if options:
        return " or ".join(dict.fromkeys(map(_type, options)))
    if "enum" in node or "const" in node:
        return ", ".join(f'`"{value}"`' for value in node.get("enum", [node.get("const")]))
    if node.get("format") == "fraction":
        return "fraction"
    if node["type"] == "array":
        items = node.get("items") or {"type": node["prefixItems"][0]["type"]}
        return _type(items) if "items" in items else f"list of {_type(items)}"
    if node["type"] == "object":
        return "table" if "anyOf" in node["additionalProperties"] else "table of numbers"
    return {"integer": "whole number", "number": "number", "string": "text"}[node["type"]]


def _default(node: Mapping[str, Any], *, required: bool) -> str:
    value = node.get("default")
    if required:
        return "**required**"
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else value
    if isinstance(value, float) and (value * 255).is_integer() and round(value, 3) != value:
        return f"`{round(value * 255)}/255`"
    return "" if value is None or value == "" or isinstance(value, dict) else f"`{value}`"


def _commands() -> str:
    command: Any = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="gnp")
    for name, subcommand in command.commands.items():  # typer shortens their first lines
        text = re.sub(
            rf"^\* `{name}`: .*$", f"* [`{name}`](#gnp-{name}): {_first(subcommand.help)}", text, flags=re.MULTILINE
        )
    return text[text.index("**Usage**") :]  # without typer's heading, as the page has its own


def _first(text: str | None) -> str:
    """The first paragraph of a docstring."""
    return " ".join((text or "").partition("\n\n")[0].split())


def _columns() -> str:
    descriptions = {field.name: field.metadata[b"meaning"].decode() for field in results.TRANSFER}
    clean = set(results.CLEAN.names)
    rows = [
        (f"`{field.name}`", str(field.type).replace("dictionary<values=string, indices=int32, ordered=0>", "string"))
        for field in results.TRANSFER
    ]
    return _table(
        ("column", "type", "in clean rows", "description"),
        [(name, kind, "yes" if name.strip("`") in clean else "", descriptions[name.strip("`")]) for name, kind in rows],
    )


def _metrics() -> str:
    rows = []
    for metric in metrics.ALL:
        info = metric.info
        labels = ", ".join(f"`{key}`" for key in info["tag_keys"] if key != "run")
        rows.append((f"`{metrics.exported(metric)}`", labels, info["description"]))
    return _table(("metric", "labels", "description"), rows)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(columns)
    lines = [
        header,
        ["---"] * len(header),
        *([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Updates the generated blocks of every page in docs/, and prints the pages that changed."""
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        path.write_text(fill_blocks(page), encoding="utf-8")
        if page != fill_blocks(page):
            sys.stdout.write(f"{path.relative_to(DOCS.parent)}\n")


if __name__ == "__main__":
    main()
