"""What the files of a sample hold: which of them is the image, and its label as a number or a field of JSON."""

import json
from collections.abc import Collection
from typing import Any

from webdataset.autodecode import basichandlers

from pipeline.errors import SampleError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm")


def image_extension(extensions: Collection[str]) -> str:
    """The extension of a sample's image.

    Raises:
        SampleError: None of its files is an image.
    """
    found = next((extension for extension in IMAGE_EXTENSIONS if extension in extensions), None)
    if found is not None:
        return found
    dotted = [name for name in extensions if name.endswith(tuple(f".{extension}" for extension in IMAGE_EXTENSIONS))]
    if dotted:
        raise SampleError(f"no image: {dotted[0][:40]!r} counts as the extension, all after the first dot; rename it")
    raise SampleError(f"no image: none of {', '.join(IMAGE_EXTENSIONS)}; its files are {listed(extensions)}")


def listed(extensions: Collection[str]) -> str:
    """A sample's extensions for messages."""
    return ", ".join(sorted(extensions))[:100]


def whole_number(text: bytes) -> Any:
    """The whole number that a file holds; else its first bytes."""
    try:
        return int(basichandlers("cls", text))
    except ValueError:
        return text[:40]


def json_field(text: bytes, field: str) -> Any:
    """The value of a field of a JSON file; `a.b` is the field b of the table a.

    Raises:
        SampleError: It is not JSON, or has no such field.
    """
    value: Any = None
    try:
        value = json.loads(text)
        for name in field.split("."):
            value = value[name]
    except (ValueError, RecursionError):
        raise SampleError("no label: its JSON cannot be read") from None
    except (KeyError, TypeError):
        known = f"; its fields are {listed(value)}" if isinstance(value, dict) else ""
        raise SampleError(f"no label: its JSON has no {field!r}{known}") from None
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value


def require_class(value: Any, classes: int, *, called: str) -> int:
    """A class index.

    Args:
        value: What a sample has for it.
        classes: Number of classes.
        called: What it is called in messages.

    Raises:
        SampleError: It is no whole number in [0, classes).
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise SampleError(f"the {called} is no whole number: {value!r}"[:100])
    if not 0 <= value < classes:
        raise SampleError(f"{called} {value} lies outside 0..{classes - 1}")
    return value
