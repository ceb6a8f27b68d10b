"""Names of the ImageNet-1k classes."""

import functools
from typing import Any

import timm.data


def class_name(index: int) -> str:
    """The ImageNet-1k name of a class index; the index as text outside ImageNet-1k."""
    info = _imagenet_info()
    return str(info.index_to_description(index)) if 0 <= index < info.num_classes() else str(index)


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """The synset of each ImageNet-1k class index, such as `n01440764` for 0."""
    info = _imagenet_info()
    return tuple(str(info.index_to_label_name(index)) for index in range(info.num_classes()))


@functools.cache
def _imagenet_info() -> Any:
    return timm.data.ImageNetInfo()
