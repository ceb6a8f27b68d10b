"""Names of the ImageNet-1k classes, from timm's files, without importing timm, which takes seconds."""

import csv
import functools
import importlib.util
from pathlib import Path


def class_name(index: int) -> str:
    """The ImageNet-1k name of a class index; the index as text outside ImageNet-1k."""
    synsets = imagenet_synsets()
    return _lemmas()[synsets[index]] if 0 <= index < len(synsets) else str(index)


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """The synset of each ImageNet-1k class index, such as `n01440764` for 0."""
    return tuple(_read("imagenet_synsets.txt"))


@functools.cache
def _lemmas() -> dict[str, str]:
    return {row[0]: row[1] for row in csv.reader(_read("imagenet_synset_to_lemma.txt"), delimiter="\t")}


def _read(name: str) -> list[str]:
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "data" / "_info" / name).read_text("utf-8").splitlines()
