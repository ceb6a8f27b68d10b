"""Keys and identities: what is committed, under which key, and the fingerprints in keys.

    markers/original/DATASET/PART.json                              an original part
    markers/adversarial/DATASET/SOURCE/ATTACK/PART.json             an adversarial part
    markers/clean/DATASET/TARGET/PART.json                          clean predictions
    markers/transfer/DATASET/SOURCE/ATTACK/TARGET/PART.json         adversarial predictions

The data of images lies at `shards/…/PART-HASH.tar`, of predictions at `results/…/PART-HASH.parquet`.

DATASET, SOURCE, ATTACK and TARGET are identities, `name-fingerprint`; the fingerprint covers all that determines the
pixels or predictions. PART is `SHARD/00003-of-00005`. A changed recipe therefore writes elsewhere and never mixes with
old results.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.data.sample import Part
from pipeline.storage import json_sha256

UnitKind = Literal["original", "adversarial", "clean", "transfer"]
UNIT_KINDS: tuple[UnitKind, ...] = ("original", "adversarial", "clean", "transfer")

_PART_FILE = re.compile(r"(?P<index>\d{5,})-of-(?P<count>\d{5,})\.json")
# The identities between a kind's dataset and its part.
_IDENTITIES: dict[UnitKind, tuple[str, ...]] = {
    "original": (),
    "adversarial": ("source", "attack"),
    "clean": ("target",),
    "transfer": ("source", "attack", "target"),
}


@dataclass(frozen=True, order=True)
class Unit:
    """What is committed at once: one part's images, or one target's predictions for them.

    Identities that a kind does not have are empty strings.

    Attributes:
        dataset: Identity of the prepared images.
        part: The part of the dataset.
        source: Identity of the model attacked.
        attack: Identity of the attack.
        target: Identity of the model scored.
    """

    dataset: str
    part: Part
    source: str = ""
    attack: str = ""
    target: str = ""

    @property
    def kind(self) -> UnitKind:
        """Which of the four kinds of result this is."""
        if self.target:
            return "transfer" if self.attack else "clean"
        return "adversarial" if self.attack else "original"

    @property
    def scope(self) -> str:
        """The folder of its kind, dataset and models: `clean/DATASET/TARGET`."""
        return "/".join([self.kind, self.dataset, *(getattr(self, name) for name in _IDENTITIES[self.kind])])

    @property
    def path(self) -> str:
        """Its path below `markers/`, and that of its data below `shards/` or `results/`."""
        return f"{self.scope}/{self.part.shard}/{self.part.index:05d}-of-{self.part.count:05d}"

    @property
    def data_key(self) -> str:
        """The key of its data, up to the hash: a tar of images, or Parquet where a target has scored them."""
        return f"{'results' if self.target else 'shards'}/{self.path}"

    @property
    def marker_key(self) -> str:
        """The key of its marker."""
        return f"markers/{self.path}.json"


def unit_from_record(fields: Mapping[str, Any]) -> Unit:
    """The unit of which `asdict` gave these fields.

    Raises:
        KeyError: The fields are not those of a unit.
        TypeError: The fields are not those of a unit.
    """
    return Unit(**{**fields, "part": Part(**fields["part"])})


def parse_part_file(name: str) -> tuple[int, int] | None:
    """Index and count of `00003-of-00005.json`; None for other names."""
    match = _PART_FILE.fullmatch(name)
    return None if match is None else (int(match["index"]), int(match["count"]))


def parse_marker_key(key: str) -> Unit | None:
    """The unit whose marker has this key; None for other keys."""
    folder, kind, *rest = key.split("/")
    if folder != "markers" or kind not in UNIT_KINDS or len(rest) != len(_IDENTITIES[kind]) + 3:
        return None
    dataset, *identities, shard, name = rest
    part = parse_part_file(name)
    if part is None:
        return None
    return Unit(dataset, Part(shard, *part), **dict(zip(_IDENTITIES[kind], identities, strict=True)))


def parse_data_key(key: str) -> Unit | None:
    """The unit whose data has this key, `shards/SCOPE/SHARD/00000-of-00001-HASH.tar`; None for other keys."""
    path = key.partition("/")[2].rpartition("-")[0]
    unit = parse_marker_key(f"markers/{path}.json")
    return unit if unit is not None and key.startswith(f"{unit.data_key}-") else None


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The first 12 hex digits of the sha256 of canonical JSON."""
    return json_sha256(settings)[:12]


def make_id(name: str, settings: Mapping[str, Any]) -> str:
    """An identity: a readable name, then the fingerprint of the name and all settings."""
    return f"{slug(name)}-{fingerprint({'name': name, **settings})}"


def name_in_id(identity: str) -> str:
    """The readable name in an identity, as `slug` wrote it."""
    return identity.rpartition("-")[0]


def slug(name: str) -> str:
    """A name with only characters that every store accepts."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name)
