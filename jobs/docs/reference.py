"""`make reference`: the pages of docs/ that say what the program takes, made of the program itself.

Where a page says `<!-- made of: NAME -->`, what stands up to `<!-- end -->` is written anew.
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
from pipeline.attack.recipe import TRANSFORMS, VIEWS
from pipeline.data import codec
from pipeline.engine import metrics
from pipeline.models import load
from pipeline.models.defenses import DEFENSES
from pipeline.plan import pools, recipe, resolve
from pipeline.results import schema as results
from pipeline.training import lesson
from pipeline.training import recipe as training_recipe

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"(<!-- made of: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_WHOLE = {kind.__name__: kind.model_json_schema() for kind in (recipe.Recipe, training_recipe.LessonRecipe)}
_PIECES = {name: piece for schema in _WHOLE.values() for name, piece in schema["$defs"].items()}
# The heading for what is a table of its own: of recipe.md, or of training.md.
_HEADINGS = {
    "Preparation": "preparation",
    "ModelSpec": "sources",
    "EnsembleSpec": "ensembles",
    "AttackEntry": "attacks",
}
_HEADINGS |= {"TargetSpec": "targets", "DataSpec": "data", "Budget": "budget", "Pools": "engine"}
_HEADINGS |= {kind.__name__: name for name, kind in {**VIEWS, **TRANSFORMS, **DEFENSES}.items()}
_OF_TRAINING = {"Data": "trained-on", "HeldOut": "held-out", "Schedule": "schedule", "Workers": "who-trains"}


def filled(page: str) -> str:
    """A page with every block written anew."""
    return _BLOCK.sub(lambda found: found[1] + made(found[2]).rstrip() + "\n" + found[3], page)


def made(name: str) -> str:
    """What goes into a block: of that name, or of the recipe's model of that name."""
    makers: dict[str, Callable[[], str]] = {
        "commands": _commands,
        "columns": _columns,
        "metrics": _metrics,
        "parts": lambda: _sections({**VIEWS, **TRANSFORMS}),
        "defenses": lambda: _sections(DEFENSES),
    }
    return makers[name]() if name in makers else _settings(name)


def _settings(name: str) -> str:
    """The table of a model's fields."""
    schema = _WHOLE.get(name) or _PIECES[name]
    told = _told(_kind(name))
    rows = [
        (f"`{field}`", _type(node), _default(node, required=field in schema.get("required", ())), told.get(field, ""))
        for field, node in schema["properties"].items()
    ]
    return _table(("key", "takes", "by default", "is"), rows)


def _sections(kinds: Mapping[str, type]) -> str:
    """A heading, what it is, and a table of settings, for each."""
    return "\n".join(f"### {name}\n\n{_summary(kind)}\n\n{_settings(kind.__name__)}" for name, kind in kinds.items())


def _kind(name: str) -> Any:
    """The class of a model of the recipe, by its name."""
    parts = {kind.__name__: kind for kind in {**VIEWS, **TRANSFORMS, **DEFENSES}.values()}
    known = [vars(module) for module in (lesson, training_recipe, recipe, resolve, pools, load, codec)]
    return ChainMap(parts, *known)[name]


def _told(kind: type) -> dict[str, str]:
    """What docstrings say of a class's fields; of what it inherits as well."""
    told: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if each.__doc__ and each.__module__.startswith("pipeline"):
            parsed = docstring_parser.parse(inspect.cleandoc(each.__doc__), docstring_parser.DocstringStyle.GOOGLE)
            told |= {param.arg_name: param.description or "" for param in parsed.params}
    parts = {**VIEWS, **TRANSFORMS, **DEFENSES}
    return told | {name: f"Settings of `{name}`." for name in parts if name in getattr(kind, "model_fields", ())}


def _summary(kind: type) -> str:
    return _first(inspect.getdoc(kind))


def _type(node: Mapping[str, Any]) -> str:
    """What a field takes, of its JSON schema."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        page, heading = ("training.md", _OF_TRAINING[name]) if name in _OF_TRAINING else ("recipe.md", _HEADINGS[name])
        return f"a table: [{heading}]({page}#{heading})"
    options = [each for each in node.get("anyOf", node.get("oneOf", [])) if each.get("type") != "null"]
    if options:
        return " or ".join(dict.fromkeys(map(_type, options)))
    if "enum" in node or "const" in node:
        return ", ".join(f'`"{value}"`' for value in node.get("enum", [node.get("const")]))
    if node.get("format") == "fraction":
        return "fraction"
    if node["type"] == "array":
        items = node.get("items") or {"type": node["prefixItems"][0]["type"]}
        return _type(items) if "items" in items else f"list of {_type(items)}"
    return {"integer": "whole number", "number": "number", "string": "text", "object": "table of numbers"}[node["type"]]


def _default(node: Mapping[str, Any], *, required: bool) -> str:
    value = node.get("default")
    if required:
        return "**must be given**"
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else value
    if isinstance(value, float) and (value * 255).is_integer() and round(value, 3) != value:
        return f"`{round(value * 255)}/255`"
    return "" if value is None or value == "" or isinstance(value, dict) else f"`{value}`"


def _commands() -> str:
    command: Any = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="gnp")
    for name, each in command.commands.items():  # whose first lines it cuts off
        text = re.sub(
            rf"^\* `{name}`: .*$", f"* [`{name}`](#gnp-{name}): {_first(each.help)}", text, flags=re.MULTILINE
        )
    return text[text.index("**Usage**") :]  # the page has its own heading


def _first(text: str | None) -> str:
    """The first paragraph of a docstring."""
    return " ".join((text or "").partition("\n\n")[0].split())


def _columns() -> str:
    described = {field.name: field.metadata[b"meaning"].decode() for field in results.TRANSFER}
    clean = set(results.CLEAN.names)
    rows = [
        (f"`{field.name}`", str(field.type).replace("dictionary<values=string, indices=int32, ordered=0>", "string"))
        for field in results.TRANSFER
    ]
    return _table(
        ("column", "type", "clean rows too", "is"),
        [(name, kind, "yes" if name.strip("`") in clean else "", described[name.strip("`")]) for name, kind in rows],
    )


def _metrics() -> str:
    rows = []
    for metric in metrics.ALL:
        told = metric.info
        labels = ", ".join(f"`{key}`" for key in told["tag_keys"] if key != "run")
        rows.append((f"`{metrics.exported(metric)}`", labels, told["description"]))
    return _table(("metric", "labels", "is"), rows)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [
        heads,
        ["---"] * len(heads),
        *([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Writes every page of docs/ anew that has such blocks."""
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        path.write_text(filled(page), encoding="utf-8")
        if page != filled(page):
            sys.stdout.write(f"{path.relative_to(DOCS.parent)}\n")


if __name__ == "__main__":
    main()
