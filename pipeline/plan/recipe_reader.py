"""TOML recipe files → validated models; every fault is one line with its place, value and remedy."""

import datetime
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import RecipeError
from pipeline.plan.recipe import Recipe
from pipeline.plan.recipe_errors import children, dotted, fault_lines, one_line

RecipeModel = TypeVar("RecipeModel", bound=BaseModel)

# The deepest key of a recipe is attacks.1.gnp.r; with room to name a wrong one below.
_MAX_DEPTH = 10


def load_recipe(path: Path) -> Recipe:
    """Reads and validates a recipe.

    Raises:
        RecipeError: One line for each fault: where, what, and what would be accepted.
    """
    return load_toml(path, Recipe)


def load_toml(path: Path, model: type[RecipeModel]) -> RecipeModel:
    """Reads a TOML file and validates it against a pydantic model.

    Raises:
        RecipeError: One line for each fault: where, what, and what would be accepted.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:  # TOML's own, and what long numbers and deep nesting raise
        raise RecipeError(f"{path}: not TOML: {one_line(str(error))}") from error
    _require_plain_values(values, path)
    try:
        recipe = model.model_validate(values)
    except ValidationError as error:
        lines = fault_lines(error, values, model)
        raise RecipeError("\n".join(f"{path}: {line}" for line in lines)) from error
    _require_unquoted_numbers(values, recipe, path)
    return recipe


def _require_plain_values(value: Any, path: Path, location: tuple[Any, ...] = ()) -> None:
    """Refuses values that no recipe takes but Python accepts: it counts true as 1, and its integers have no maximum.

    Raises:
        RecipeError: A boolean, a date, a number of more than TOML's 64 bits, or endlessly nested tables.
    """
    place = f"{path}: {one_line(dotted(location[:_MAX_DEPTH]))}"
    if len(location) > _MAX_DEPTH:
        raise RecipeError(f"{place}…: nested too deeply; no key of a recipe is this deep")
    if isinstance(value, datetime.date | datetime.time):
        raise RecipeError(f"{place} = {value}: nothing in a recipe is a date or a time")
    if isinstance(value, bool) and location[-2:-1] != ("args",):
        raise RecipeError(f"{place} = {str(value).lower()}: only a model's args are true or false")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RecipeError(f"{place}: a whole number of more than 64 bits")
    for key, item in children(value):
        _require_plain_values(item, path, (*location, key))


def _require_unquoted_numbers(written: Any, parsed: Any, path: Path, location: tuple[Any, ...] = ()) -> None:
    """Refuses `steps = "10"`, which pydantic reads as 10: only fractions are written as text.

    Raises:
        RecipeError: A quoted number stands where a number is expected.
    """
    if isinstance(parsed, tuple) and parsed and not isinstance(written, list):  # one value stands for a list of one
        parsed = parsed[0]
    if isinstance(written, str) and isinstance(parsed, (int, float)) and "/" not in written:
        raise RecipeError(f"{path}: {one_line(f'{dotted(location)} = {written!r}')}: write the number without quotes")
    for key, item in children(written):
        # A list where one value is expected makes a grid; all its values have one type.
        if isinstance(parsed, Mapping):
            inner = parsed[key]
        else:
            inner = (
                getattr(parsed, key) if isinstance(key, str) else parsed[key] if isinstance(parsed, tuple) else parsed
            )
        _require_unquoted_numbers(item, inner, path, (*location, key))
