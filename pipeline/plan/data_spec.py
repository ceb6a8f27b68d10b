"""`[data]` of a recipe: which images, and how they are prepared."""

import hashlib
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.data.codec import Preparation
from pipeline.data.shards import LABEL
from pipeline.models.settings import require_setting


@dataclass(frozen=True)
class DataSpec:
    """Which images, and how they are prepared.

    Attributes:
        name: The data's name in results.
        shards: URLs, brace ranges or wildcards (in file names) of WebDataset tars, plain or gzip.
        preparation: Resize and crop.
        part_size: Images in a part, the unit of commit.
        classes: Number of classes; labels lie in [0, classes).
        fraction: The share of the images to take, chosen by a hash of (seed, shard, key).
        seed: Seed of that choice.
        limit: Takes only the first images of the shards, at most this number; a fraction is taken of these.
        label: Which file of a sample holds its label, a whole number: `cls`, another extension, or `json:KEY`, a field
            of a JSON file (`json:meta.label` of a table within).
    """

    name: str
    shards: tuple[str, ...]
    preparation: Preparation = field(default_factory=Preparation)
    part_size: int = 512
    classes: int = 1000
    fraction: float = 1.0
    seed: int = 0
    limit: int | None = None
    label: str = LABEL

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ValueError(f"name = {self.name[:30]!r}: at most 100 letters, digits, '.', '_' and '-'")
        if not self.shards:
            raise ValueError("shards: none are named")
        require_setting(self.part_size >= 1, "part_size", self.part_size, "must be at least 1")
        require_setting(self.classes >= 2, "classes", self.classes, "must be at least 2")
        require_setting(0 < self.fraction <= 1, "fraction", self.fraction, "must lie in (0, 1]")
        require_setting(self.limit is None or self.limit >= 1, "limit", self.limit, "must be at least 1")
        if not re.fullmatch(r"[a-z0-9_.]{1,100}|[a-z0-9_.]{1,50}:[^:]{1,100}", self.label):
            raise ValueError(f'label = {self.label[:30]!r}: an extension such as "cls", or a JSON field, "json:label"')

    @property
    def image_settings(self) -> dict[str, Any]:
        """The settings that determine the prepared images of given shards, as JSON values."""
        added_later = {"aspect": self.preparation.aspect, "label": self.label}
        defaults = {"aspect": Preparation.aspect, "label": LABEL}
        return {
            **{name: value for name, value in asdict(self.preparation).items() if name not in added_later},
            # Left out where they are as before they were settings, so that stored identities stay.
            **{name: value for name, value in added_later.items() if value != defaults[name]},
            "part_size": self.part_size,
            "classes": self.classes,
            "fraction": self.fraction,
            "seed": self.seed,
        }

    def includes(self, shard: str, key: str) -> bool:
        """Whether a sample belongs to the seeded subset."""
        digest = hashlib.sha256(f"{self.seed}/{shard}/{key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.fraction * 2**64
