"""What a caller passes to `Dataset.examples`, checked for its types: each fault is one line that names the setting."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import get_type_hints

from pipeline.attack.settings import as_fraction, convert, shown
from pipeline.errors import RecipeError
from pipeline.storage.cache import Cache


def require_types(function: Callable[..., object], settings: Mapping[str, object]) -> None:
    """Refuses arguments of other types than a function's annotations name.

    Raises:
        RecipeError: One is of another type.
    """
    hints = get_type_hints(function)
    with _recipe_errors():
        for name, value in settings.items():
            convert(name, value, hints[name])


def as_names(setting: str, names: str | Sequence[str]) -> Sequence[str]:
    """Names as a list; one name is a list of one.

    Raises:
        RecipeError: They are no texts.
    """
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, Collection) or not all(isinstance(name, str) for name in listed):
        raise RecipeError(f"{setting} = {shown(names)}: expected a name, or a list of names; () for all")
    return list(listed)


def as_weights(weights: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """Weights of attacks, unchanged.

    Raises:
        RecipeError: They are no table of numbers.
    """
    if weights is not None and not isinstance(weights, Mapping):
        raise RecipeError(f'weights = {shown(weights)}: expected a dict such as {{"gnp+mi": 2, "mi": 0.5}}')
    with _recipe_errors():
        for name, weight in (weights or {}).items():
            convert(f"weights: {name}", weight, float)
    return weights


def as_cache(folder: str | Path | None, limit_bytes: int) -> Cache | None:
    """The cache in a folder; None without one.

    Raises:
        RecipeError: It is no path.
    """
    if folder is None:
        return None
    if not isinstance(folder, (str, Path)):
        raise RecipeError(f"cache = {shown(folder)}: expected the path of a folder")
    return Cache(Path(folder).expanduser().absolute(), limit_bytes)


def as_budget(epsilon: Fraction | str | float | None) -> Fraction | None:
    """A budget as a fraction; a float such as 8/255 becomes the nearest fraction with a small denominator.

    Raises:
        RecipeError: It is not a number.
    """
    with _recipe_errors():
        return None if epsilon is None else as_fraction("epsilon", epsilon)


@contextlib.contextmanager
def _recipe_errors() -> Iterator[None]:
    """Context in which a wrong value is a `RecipeError`, as elsewhere in a store's interface."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(str(error)) from error
