"""Numbers as recipes write them: 10, 0.05, "16/255"."""

import re
from fractions import Fraction
from typing import Any

# Of bounded length: "1e999999999" is a number that takes all of the memory and of the day.
_NUMBER = re.compile(r"(?=[-+.]{0,2}[0-9])[-+]?[0-9]{0,30}(/[0-9]{1,30}|\.[0-9]{0,30})?([eE][-+]?[0-9]{1,3})?")


def parse_number(value: Any) -> Fraction:
    """Converts a number or a text such as "16/255" by its decimal digits: 0.1 is 1/10, not the nearest binary fraction.

    Raises:
        ValueError: It is not a number, or its digits are too many.
    """
    try:
        if _NUMBER.fullmatch(str(value)):
            return Fraction(str(value))
    except ZeroDivisionError:
        pass
    raise ValueError(f'{value!r} is not a number; write a number, or a fraction such as "16/255"')


def parse_fractions(table: Any) -> Any:
    """Replaces each text such as "16/255" in a table by its float; leaves everything else as it is.

    Raises:
        ValueError: A text with a slash is not a fraction.
    """
    if not isinstance(table, dict):
        return table
    parsed = dict(table)
    for name, value in table.items():
        if isinstance(value, str) and "/" in value:
            try:
                parsed[name] = float(parse_number(value))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return parsed
