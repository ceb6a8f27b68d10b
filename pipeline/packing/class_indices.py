"""Class indices from the names of classes: whole numbers, ImageNet's synsets, a file of names, or the order of text."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.models.class_names import imagenet_synsets

_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")
_SYNSET = re.compile(r"n[0-9]{8}")
# A file of names is read whole.
_MOST_BYTES = 1 << 24


def number_classes(names: Iterable[str], *, where: str) -> tuple[dict[str, int], list[str]]:
    """Numbers the classes of an ImageFolder by the names of its folders.

    Whole numbers are the indices. ImageNet-1k's synsets (`n01440764`) get ImageNet's indices, also where only some are
    there. Other names are numbered in the order of their text, as torchvision does.

    Args:
        names: Names of the folders.
        where: The folder that they lie in, for messages.

    Returns:
        Name → index, and notes for the user.

    Raises:
        RecipeError: The names allow two readings.
    """
    ordered = sorted(names)
    numbers = [name for name in ordered if _WHOLE_NUMBER.fullmatch(name)]
    if len(numbers) == len(ordered):
        return _by_number(numbers, where)
    if numbers:
        other = next(name for name in ordered if name not in numbers)
        raise RecipeError(
            f"{where}: some class folders are numbers ({numbers[0]}), others names ({other}); state the index of each "
            "with --classes"
        )
    if all(_SYNSET.fullmatch(name) for name in ordered):
        indices = imagenet_indices()
        known = [name for name in ordered if name in indices]
        if len(known) == len(ordered):
            return {name: indices[name] for name in ordered}, []
        if known:
            other = next(name for name in ordered if name not in indices)
            raise RecipeError(
                f"{where}: {len(known)} folders are synsets of ImageNet-1k ({known[0]}), {len(ordered) - len(known)} "
                f"are not ({other}); leave these out, or state the index of each class with --classes"
            )
    notes = _order_notes(ordered)
    if all(re.match(r"n[0-9]{8}\b", name) for name in ordered):
        notes.append("the names begin with synsets; for ImageNet's indices, state them with --classes")
    return {name: index for index, name in enumerate(ordered)}, notes


def label_index(text: str, names: Mapping[str, int]) -> int | None:
    """The class index that a table's label stands for: a known name's, a whole number, or a synset's; else None."""
    text = text.strip()
    if text in names:
        return names[text]
    if _WHOLE_NUMBER.fullmatch(text):
        return int(text)
    return imagenet_indices().get(text) if _SYNSET.fullmatch(text) else None


def read_class_names(file: Path) -> dict[str, int]:
    """The class indices in a file: a name per line, counted from 0, or JSON as `classes.json` has it.

    JSON may be `{"cat": 0, …}`, `["cat", …]`, or `{"0": "cat", …}` and `{"0": ["n01440764", "tench"], …}`, in which
    each of the texts is a name of the class.

    Raises:
        RecipeError: The file cannot be read, or names a class twice.
    """
    try:
        data = file.read_bytes()[: _MOST_BYTES + 1]
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--classes {file}: cannot be read as UTF-8 text ({error})") from error
    if len(data) > _MOST_BYTES:
        raise RecipeError(f"--classes {file}: more than {_MOST_BYTES:,} bytes; expected a name per line, or JSON")
    pairs = _json_pairs(text, file) if text.lstrip()[:1] in ("{", "[") else _line_pairs(text, file)
    classes: dict[str, int] = {}
    for name, index in pairs:
        if classes.setdefault(name, index) != index:
            raise RecipeError(f"--classes {file}: {name!r} is both class {classes[name]} and class {index}")
    if not classes:
        raise RecipeError(f"--classes {file}: it names no class")
    return classes


def imagenet_indices() -> dict[str, int]:
    """Synset → index among ImageNet-1k's 1,000 classes."""
    return {synset: index for index, synset in enumerate(imagenet_synsets())}


def _by_number(names: list[str], where: str) -> tuple[dict[str, int], list[str]]:
    classes = {name: int(name) for name in sorted(names, key=int)}
    if len(set(classes.values())) < len(names):
        raise RecipeError(f"{where}: two class folders are the same number, such as 7 and 07; rename one")
    return classes, []


def _order_notes(ordered: list[str]) -> list[str]:
    """A note where numbers within the names are out of order, as class10 before class2."""
    natural = sorted(ordered, key=_natural_order)
    if natural == ordered:
        return []
    first = next(index for index, pair in enumerate(zip(ordered, natural, strict=True)) if pair[0] != pair[1])
    return [f"classes are numbered in the order of text, as torchvision does: {ordered[first]} before {natural[first]}"]


def _natural_order(name: str) -> list[Any]:
    """A sort key in which numbers within a name count as numbers."""
    pieces = re.split(r"([0-9]+)", name)  # text and digits in turn, so that equal positions have equal types
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)]


def _line_pairs(text: str, file: Path) -> list[tuple[str, int]]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise RecipeError(f"--classes {file}: line {lines.index('') + 1} is empty; the lines are counted, from class 0")
    if len(set(lines)) < len(lines):
        twice = next(line for line in lines if lines.count(line) > 1)
        raise RecipeError(f"--classes {file}: {twice!r} stands in two lines")
    return [(name, index) for index, name in enumerate(lines)]


def _json_pairs(text: str, file: Path) -> list[tuple[str, int]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"--classes {file}: not JSON ({error})") from error
    if isinstance(content, list):
        content = {str(index): name for index, name in enumerate(content)}
    pairs = [pair for key, value in content.items() for pair in _json_entry(key, value)]
    if not all(isinstance(name, str) and name and 0 <= index < 10**9 for name, index in pairs) or not pairs:
        raise RecipeError(f'--classes {file}: expected {{"cat": 0, …}}, {{"0": "cat", …}} or ["cat", …]')
    return pairs


def _json_entry(key: str, value: Any) -> list[tuple[Any, int]]:
    """The (name, index) pairs of one entry; a pair with the index −1 where it has another form."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [(key, value)]
    if not _WHOLE_NUMBER.fullmatch(key):
        return [(key, -1)]
    return [(name, int(key)) for name in (value if isinstance(value, list) else [value])]
