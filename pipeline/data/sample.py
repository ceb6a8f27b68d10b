"""The nouns that travel between rooms: frozen dataclasses, no logic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One labelled, still encoded image of a shard.

    Attributes:
        key: WebDataset's `__key__`.
        image: The encoded image file, as it lies in the tar.
        label: The class index.
        target_class: The class that a targeted attack is to reach, where the shard says one.
    """

    key: str
    image: bytes
    label: int
    target_class: int | None = None


@dataclass(frozen=True)
class Rejected:
    """One sample that cannot be used, and why: a quarantine row.

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
        index: Which part, from 0.
        count: How many parts the shard has.
    """

    shard: str
    index: int
    count: int


@dataclass(frozen=True)
class ShardFile:
    """One shard that a recipe names.

    Attributes:
        url: Where it lies.
        name: What results call it: its file name without `.tar`.
        size_bytes: Its size when it was listed.
        version: The store's tag of its content when it was listed.
        modified: When it was last written, in seconds since 1970, by the clock of where it lies.
    """

    url: str
    name: str
    size_bytes: int
    version: str
    modified: float = 0.0
