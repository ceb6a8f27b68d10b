"""Samples, parts and shard files: plain records that the other packages pass around."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One labelled, still encoded image of a shard.

    Attributes:
        key: WebDataset's `__key__`.
        image: The encoded image file, as it lies in the tar.
        label: Class index.
        target_class: Class that a targeted attack is to reach, where the shard names one.
    """

    key: str
    image: bytes
    label: int
    target_class: int | None = None


@dataclass(frozen=True)
class RejectedSample:
    """A sample that cannot be used, for quarantine.

    Attributes:
        key: WebDataset's `__key__`.
        reason: One line.
    """

    key: str
    reason: str


@dataclass(frozen=True, order=True)
class Part:
    """Images [size·index, size·(index+1)) of a shard in tar order: the unit of commit.

    Attributes:
        shard: The shard's name, without folder and `.tar`.
        index: Index of the part, from 0.
        count: Number of parts of the shard.
    """

    shard: str
    index: int
    count: int


@dataclass(frozen=True)
class ShardFile:
    """One shard that a recipe names.

    Attributes:
        url: URL of the file.
        name: Name of the shard in results: its file name without `.tar`.
        size_bytes: Size when it was listed.
        version: The store's tag of its content when it was listed.
        modified: Time of the last write, in seconds since 1970 by the clock of its store.
    """

    url: str
    name: str
    size_bytes: int
    version: str
    modified: float = 0.0
