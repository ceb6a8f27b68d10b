"""Names of the ImageNet-1k classes."""

import functools
from typing import Any

import timm.data


def class_name(index: int) -> str:
    """The ImageNet-1k name of a class index; the index as text outside ImageNet-1k."""
    info = _imagenet_info()
    return str(info.index_to_description(index)) if 0 <= index < info.num_classes() else str(index)


@functools.cache
def _imagenet_info() -> Any:
    return timm.data.ImageNetInfo()
