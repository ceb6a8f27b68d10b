"""Labelled images, whatever they are read from, and the keys that they get."""

import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import quote

from pipeline.data.sample_fields import IMAGE_EXTENSIONS
from pipeline.errors import RecipeError

# Why an image is left out that has no bytes.
EMPTY = "empty"


@dataclass(frozen=True)
class LabelledImage:
    """An image to pack.

    Attributes:
        name: Path in its source, from which the key follows: `cat/1.jpg`.
        where: The file, for messages.
        label: Class index.
        read: Reads the bytes of the image file.
        target_class: Class that a targeted attack is to reach, where a table names one.
    """

    name: PurePosixPath
    where: str
    label: int
    read: Callable[[], bytes]
    target_class: int | None = None


@dataclass(frozen=True)
class LabelledImages:
    """The images of a source.

    Attributes:
        images: In the order in which they are packed.
        classes: Class name → index; empty where the source has no names.
        left_out: Reason → what was left out for it.
        notes: Lines that the user should read.
    """

    images: Sequence[LabelledImage]
    classes: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def sample_key(path: PurePosixPath) -> str:
    """The key of an image file, from its path in its source.

    A key cannot hold a dot (WebDataset takes what follows it for the extension), and folders become `_`. Letters and
    digits of any script, `_` and `-` are kept, all else is percent-encoded as in URLs, so that no two names collapse.

    Raises:
        RecipeError: The path is not UTF-8.
    """
    name = path.as_posix()
    if not name.isprintable() and any("\ud800" <= character <= "\udfff" for character in name):
        readable = os.fsencode(name).decode(errors="backslashreplace")
        raise RecipeError(f"{readable}: the name is not UTF-8; rename it, or unpack the archive with its encoding")
    plain = unicodedata.normalize("NFC", path.with_suffix("").as_posix())
    return "".join("_" if character == "/" else _encode(character) for character in plain)


def _encode(character: str) -> str:
    kept = character in "_-" or unicodedata.category(character)[0] in "LMN"
    return character if kept else quote(character, safe="").replace(".", "%2E")


def has_image_extension(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return PurePosixPath(name).suffix[1:].lower() in IMAGE_EXTENSIONS
