"""Settings of an attack as Python callers write them, converted to the types of the fields that hold them."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Part = TypeVar("Part")

# A float such as 16/255 stands for the nearest fraction up to this denominator.
_LARGEST_DENOMINATOR = 1_000_000
_LONGEST_SHOWN = 100
# What other libraries call settings of an attack.
_ELSEWHERE: dict[object, str] = {"eps": "epsilon", "alpha": "step_size", "mu": "decay", "epoch": "steps"}


def build_part(name: str, kind: type[Part], settings: Part | Mapping[str, Any]) -> Part:
    """A part of an attack from a table of its settings; an instance stays as it is.

    Args:
        name: The part's name in a combination.
        kind: Its class, a dataclass.
        settings: Field → value.

    Raises:
        ValueError: A setting is unknown, or its value of another type or out of range.
    """
    if isinstance(settings, kind):
        return settings
    if not isinstance(settings, Mapping):
        raise ValueError(f"{name} = {shown(settings)}: expected a dict of settings, or a {kind.__name__}")
    assert dataclasses.is_dataclass(kind)
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for key in settings:
        require_known(key, known, place=f"{name}.")
    values = {key: convert(f"{name}.{key}", value, hints[key]) for key, value in settings.items()}
    try:
        part: Part = kind(**values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return part


def require_known(key: object, known: Iterable[str], *, place: str = "") -> None:
    """Refuses a setting that does not exist, and names the most similar one, or all.

    Raises:
        ValueError: It is not known.
    """
    known = list(known)
    if key not in known:
        close = [_ELSEWHERE[key]] if _ELSEWHERE.get(key) in known else difflib.get_close_matches(str(key), known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        raise ValueError(f"{place}{key}: unknown setting; {remedy}")


def convert(name: str, value: Any, hint: Any) -> Any:
    """A value as the type that an annotation names: texts, choices, whole numbers, numbers (also as "1/255").

    Raises:
        ValueError: It has another type.
    """
    options = _options(hint)
    if isinstance(value, str) and (value in options or str in options):
        return value
    if value is None and type(None) in options:
        return value
    if isinstance(value, bool) and bool in options:
        return value
    is_number = not isinstance(value, bool)
    if is_number and (Fraction in options or float in options):
        number = as_fraction(name, value)
        return number if Fraction in options else float(value if not isinstance(value, str) else number)
    if is_number and int in options and not isinstance(value, str) and hasattr(value, "__index__"):
        return value.__index__()
    raise ValueError(f"{name} = {shown(value)}: expected {' or '.join(_describe(option) for option in options)}")


def as_fraction(name: str, value: Any) -> Fraction:
    """A number such as 16 / 255, "16/255" or "0.05" as a fraction.

    Raises:
        ValueError: It is not a finite number.
    """
    try:
        if isinstance(value, str) and "/" in value:
            number = Fraction(*map(int, value.split("/")))
        else:  # through a float, as Fraction("1e999999999") takes all of the memory
            number = value if isinstance(value, Fraction) else Fraction(float(value))
        return number.limit_denominator(_LARGEST_DENOMINATOR)
    except (OverflowError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f'{name} = {shown(value)}: not a finite number; write 16 / 255 or "16/255"') from error


def shown(value: object) -> str:
    """A value in an error: its `repr` on one line, cut where it is long, as those of arrays are."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _options(hint: Any) -> list[Any]:
    """The choices and types that an annotation allows."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [option for inner in get_args(hint) for option in _options(inner)] if get_args(hint) else [hint]


def _describe(option: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        Fraction: "a number",
        str: "a text",
        bool: "True or False",
        type(None): "None",
    }
    return names.get(option) or repr(option)
