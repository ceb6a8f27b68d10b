"""URLs of stores and objects: parsing, and paths that mean the same in every worker."""

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from pipeline.errors import RecipeError


class S3Root(NamedTuple):
    """Bucket and key prefix (without slashes at its ends) of a store on S3."""

    bucket: str
    prefix: str


def parse_root(url: str) -> S3Root | Path:
    """The S3 prefix or the absolute folder that a store's URL names.

    Args:
        url: `s3://bucket/prefix`, `file:///folder` or a plain folder.

    Raises:
        RecipeError: The URL has another form.
    """
    scheme, _, rest = url.rpartition("://")
    if scheme == "s3":
        bucket, _, prefix = rest.rstrip("/").partition("/")
        if not bucket or "//" in f"/{prefix}":
            raise RecipeError(f"store {url!r}: write s3://bucket/prefix, with a bucket and no empty step")
        return S3Root(bucket, prefix)
    if re.match(r"(s3|file):", url) and not scheme:
        raise RecipeError(f"store {url!r}: not a store; write s3://bucket/prefix or file:///folder, with both slashes")
    if scheme not in ("", "file") or not rest:
        raise RecipeError(f"store {url!r}: not a store; write s3://bucket/prefix, file:///folder or a folder")
    if scheme and not rest.startswith("/"):
        raise RecipeError(f"store {url!r}: write file:///folder, with three slashes and a whole path")
    return Path(absolute_url(unquote(rest) if scheme else rest))


def absolute_url(url: str) -> str:
    """A URL that means the same in every worker: plain paths are taken from the current folder.

    Links are kept: the model hub's cache names files by links to blobs that have no extension.

    Raises:
        RecipeError: The path is relative, and the current folder was deleted.
    """
    try:
        return url if "://" in url else os.path.abspath(os.path.expanduser(url))
    except FileNotFoundError as error:
        raise RecipeError(f"{url}: the current folder does not exist any more; change to one that does") from error


def split_url(url: str) -> tuple[str, str]:
    """An object's URL as (URL of its folder, its name)."""
    folder, slash, name = url.rpartition("/")
    return folder or slash or ".", name
