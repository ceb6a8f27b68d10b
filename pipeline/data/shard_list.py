"""Finding the shards that a recipe names: URLs, brace ranges and wildcards."""

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

import braceexpand

from pipeline.data.sample import ShardFile
from pipeline.errors import MissingError, RecipeError
from pipeline.storage import Storage, StoredObject, absolute_url, split_url

_WILDCARD = re.compile(r"[*?\[]")


def find_shards(patterns: Sequence[str]) -> tuple[ShardFile, ...]:
    """The shards that URLs, brace ranges (`val-{0000..0063}.tar`) and wildcards name, in the order of the patterns.

    Raises:
        MissingError: A URL names nothing, or a wildcard matches nothing.
        RecipeError: Two shards would have the same name in the results, or a pattern is malformed.
    """
    shards: list[ShardFile] = []
    folders: dict[str, dict[str, StoredObject]] = {}
    for url in (url for pattern in patterns for url in _expand_braces(pattern)):
        folder, name = split_url(absolute_url(url))
        if _WILDCARD.search(folder) and not os.path.isdir(folder):
            raise RecipeError(f"shards {url!r}: a wildcard (*, ?, [ ]) may stand in the file name only")
        if folder not in folders:
            folders[folder] = {stored.key: stored for stored in Storage(folder).list_folder()}
        files = folders[folder]
        is_wildcard = _WILDCARD.search(name) and name not in files
        names = [key for key in sorted(files) if fnmatchcase(key, name)] if is_wildcard else [name]
        if not names or any(name not in files for name in names):
            raise MissingError(
                f"shards {url!r}: no such file in {folder} ({len(files)} files there); write a file, a brace range or "
                "a wildcard such as FOLDER/*.tar"
            )
        shards += [_shard_file(folder, files[name]) for name in names]
    _require_distinct_names(shards)
    return tuple(shards)


def _shard_file(folder: str, stored: StoredObject) -> ShardFile:
    url = f"{folder}/{stored.key}"
    return ShardFile(url, _shard_name(stored.key), stored.size_bytes, stored.version, stored.modified)


def _require_distinct_names(shards: Sequence[ShardFile]) -> None:
    urls: dict[str, str] = {}
    for shard in shards:
        if shard.name in urls:
            other = urls[shard.name]
            problem = "is named twice" if other == shard.url else f"gets the same name in results as {other}"
            raise RecipeError(f"shards: {shard.url} {problem}, {shard.name!r}; leave one out or rename it")
        urls[shard.name] = shard.url


def _expand_braces(pattern: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise RecipeError(f"shards {pattern!r}: its braces do not match") from error


def _shard_name(filename: str) -> str:
    """A shard's name in results: its file name without `.tar`, in characters that are safe in any key.

    Raises:
        RecipeError: The file is not a tar, or compressed otherwise than by gzip.
    """
    stem = re.sub(r"\.(tar|tar\.gz|tgz)$", "", filename)
    if stem == filename:
        raise RecipeError(f"shards: {filename!r} is not a .tar or .tar.gz; shards in other formats are to be unpacked")
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem)
