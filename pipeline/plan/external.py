"""Adversarial images that another program made: a folder of them, taken for an attack on a source.

They are matched to the recipe's images by name, measured against them, and from then on scored, audited and reported
like any other. Their bytes are hashed when a run begins, and checked where they are read: a folder that changes under
a run fails by name, and so do other images under a name that a store knows.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.attack.ball import BallNorm
from pipeline.data import codec
from pipeline.data.pack import LABELS, as_listed, key_of
from pipeline.data.parts import Images
from pipeline.data.shards import IMAGE_EXTENSIONS
from pipeline.errors import IntegrityError, MissingError, RecipeError, SampleError, ShardError
from pipeline.ledger import Ledger, named
from pipeline.storage import Storage, sha256


@dataclass(frozen=True)
class File:
    """One image of the folder.

    Attributes:
        name: Its name there.
        sha256: Of its bytes.
        label: What `labels.csv` says that it shows; None where there is none.
    """

    name: str
    sha256: str
    label: int | None


@dataclass(frozen=True)
class Foreign:
    """The folder, in a source's place.

    Attributes:
        name: What results call the source: what the other program attacked, as its user says.
        folder: A folder or `s3://` URL that every worker can read.
        files: The images, by the keys that `gnp shards` gives such names.
    """

    name: str
    folder: str
    files: Mapping[str, File]
    members: ClassVar[tuple[()]] = ()

    @property
    def spec(self) -> "Foreign":
        """What a recipe would say: itself."""
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """All that is known of the source."""
        return {"told": self.name}

    @property
    def id(self) -> str:
        """Name and fingerprint of the identity, as it stands in keys."""
        return named(self.name, self.identity)

    def pixels(self, images: Images, attack: "ForeignAttack") -> Tensor:
        """The folder's image of each original, (N, 3, H, W) uint8, within the attack's budget of it.

        Args:
            images: The originals, as prepared.
            attack: The attack that the folder is taken for.

        Raises:
            ShardError: An image is not there, cannot be decoded, has another size or label, or lies outside the budget.
            IntegrityError: A file is not what it was when the run began.
        """
        storage = Storage(self.folder)
        found = [images.pixels[:0]]
        for key, label, original in zip(images.keys, images.labels.tolist(), images.pixels, strict=True):
            file = self.files.get(key)
            if file is None:
                raise ShardError(f"{self.folder}: no image for {key!r}: {key}.png is expected; --limit ends before it")
            where = f"{self.folder}/{file.name}"
            if file.label not in (None, label):
                raise ShardError(f"{where}: labels.csv says {file.label}, the original {label}; classes count from 0")
            try:
                image = codec.decode(storage.get(file.name, sha256_hex=file.sha256))
            except SampleError as error:
                raise ShardError(f"{where}: {error}") from error
            except (MissingError, IntegrityError) as error:
                raise IntegrityError(f"{where}: changed since the run began: {error}") from error
            _require_within(where, image, original, attack)
            found.append(image.unsqueeze(0))
        return torch.cat(found)


@dataclass(frozen=True)
class ForeignAttack:
    """What results say of the other program's attack.

    Attributes:
        name: What results call it.
        epsilon: The budget that it was given, on [0, 1]; no image may lie outside.
        norm: Of the budget.
    """

    name: str
    epsilon: Fraction
    norm: BallNorm
    seed: ClassVar[int] = 0
    target_class: ClassVar[None] = None
    enlargement: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 100:
            raise RecipeError(f"name = {self.name[:30]!r}: from 1 to 100 characters")

    def provenance(self) -> dict[str, Any]:
        """As JSON values: what is stored, fingerprinted and reported."""
        return {
            "kind": "ForeignAttack",
            "name": self.name,
            "epsilon": str(self.epsilon),
            "norm": self.norm,
        }


def read(folder: str, *, source: str) -> Foreign:
    """Lists and hashes a folder's images, and reads its `labels.csv`, or NIPS 2017's `images.csv`, if there is one.

    Args:
        folder: A folder or `s3://` URL.
        source: What the other program attacked.

    Raises:
        MissingError: There is no such folder.
        RecipeError: The source has no name, no image is there, two have one key, or the labels are unreadable.
    """
    if not source:
        raise RecipeError("source = '': say what the other program attacked, by a target's name or tag if it is one")
    storage = Storage(folder)
    names = sorted(stored.key for stored in storage.list_folder())
    table = next((name for name in LABELS if name in names), "")
    labels = _labels(f"{folder}/{table}", storage.get(table)) if table else {}
    files: dict[str, File] = {}
    for name in names:
        if PurePosixPath(name).suffix[1:].lower() not in IMAGE_EXTENSIONS:
            continue
        key = key_of(PurePosixPath(name))
        if key in files:
            raise RecipeError(f"{folder}: {name} and {files[key].name} both have the key {key!r}")
        files[key] = File(name, sha256(storage.get(name)), labels.get(name))
    if not files:
        raise RecipeError(f"{folder}: no images; a folder of PNG is expected, named as the originals are")
    return Foreign(source, storage.url, files)


def require_unchanged(folder: Foreign, attack: ForeignAttack, ledger: Ledger) -> set[str]:
    """Refuses images that are not those that a store holds under the attack's name; those that are new are welcome.

    Returns:
        The keys of the folder's images that it holds.

    Raises:
        RecipeError: An image is another one.
    """
    identity = named(attack.name, attack.provenance())
    mine = [unit for unit in ledger.units("adversarial") if (unit.source, unit.attack) == (folder.id, identity)]
    held: set[str] = set()
    for marker in ledger.markers(mine):
        files = marker.fact("files")
        for key, digest in files.items():
            if key not in folder.files:
                continue
            held.add(key)
            if folder.files[key].sha256 != digest:
                raise RecipeError(
                    f"{folder.folder}/{folder.files[key].name}: not the image that {ledger.storage.url} holds of "
                    f"{attack.name!r}; give these another --name"
                )
    return held


def _labels(where: str, data: bytes) -> dict[str, int]:
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        found = {row["filename"]: row["label"].strip() for row in map(as_listed, rows)}
    except (UnicodeDecodeError, KeyError, AttributeError, csv.Error) as error:
        raise RecipeError(f"{where}: expected the columns filename,label in every line") from error
    odd = next((name for name, label in found.items() if not re.fullmatch(r"[0-9]{1,9}", label)), None)
    if odd is not None:
        raise RecipeError(f"{where}: the label of {odd!r} is no class index")
    return {name: int(label) for name, label in found.items()}


def _require_within(where: str, image: Tensor, original: Tensor, attack: ForeignAttack) -> None:
    if image.shape != original.shape:
        sizes = " and ".join(f"{shape[2]} x {shape[1]}" for shape in (image.shape, original.shape))
        raise ShardError(f"{where}: it and its original have {sizes} pixels; see data.preparation")
    change = image.to(torch.int64) - original.to(torch.int64)
    if attack.norm == "linf":
        measured, most, said = int(change.abs().max()), codec.levels(attack.epsilon), f"{int(change.abs().max())}/255"
    else:
        measured, most = int((change**2).sum()), codec.squared_levels(attack.epsilon)
        said = f"{measured**0.5 / 255:.4f} in L2"
    if measured > most:
        raise ShardError(
            f"{where}: {said} from its original, more than epsilon = {attack.epsilon}; give the budget that it was "
            "made with, and a data.preparation that keeps the pixels that it was made from"
        )
