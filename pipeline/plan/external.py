"""Adversarial images that another program made: a folder of images that takes the place of an attack on a source.

They are matched to the recipe's images by name, checked against the budget, and from then on scored, audited and
reported like other adversarial images. Their bytes are hashed when a run begins, and checked when they are read: a file
that changes during a run is an error, and so are other images under a name that a store already has.
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
from pipeline.data.pack import LABEL_TABLES, normalized_row, sample_key
from pipeline.data.parts import Images
from pipeline.data.shards import IMAGE_EXTENSIONS
from pipeline.errors import IntegrityError, MissingError, RecipeError, SampleError, ShardError
from pipeline.ledger import Ledger, make_id
from pipeline.storage import Storage, sha256


@dataclass(frozen=True)
class ImageFile:
    """One image of the folder.

    Attributes:
        name: File name.
        sha256: Hash of the bytes.
        label: The image's class in `labels.csv`; None without such a file.
    """

    name: str
    sha256: str
    label: int | None


@dataclass(frozen=True)
class ExternalImages:
    """A folder of another program's adversarial images, in place of a source.

    Attributes:
        name: The source's name in results: the model that the other program attacked, as the user gave it.
        folder: A folder or `s3://` URL that every worker can read.
        files: Sample key → image; keys are those that `gnp shards` gives to such file names.
    """

    name: str
    folder: str
    files: Mapping[str, ImageFile]
    members: ClassVar[tuple[()]] = ()

    @property
    def spec(self) -> "ExternalImages":
        """Itself: unlike a model, it has nothing to resolve."""
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """All that is known of the source: its name."""
        return {"told": self.name}  # a key of stored identities

    @property
    def id(self) -> str:
        """Name and fingerprint of the identity, as in keys of the store."""
        return make_id(self.name, self.identity)

    def read_pixels(self, images: Images, attack: "ExternalAttack") -> Tensor:
        """Reads the adversarial image of each original, (N, 3, H, W) uint8, and checks it against the budget.

        Args:
            images: The prepared originals.
            attack: The attack that the folder stands for.

        Raises:
            ShardError: An image is missing, cannot be decoded, has another size or label, or lies outside the budget.
            IntegrityError: A file has changed since the run began.
        """
        storage = Storage(self.folder)
        pixels = [images.pixels[:0]]
        for key, label, original in zip(images.keys, images.labels.tolist(), images.pixels, strict=True):
            file = self.files.get(key)
            if file is None:
                raise ShardError(f"{self.folder}: no image for {key!r}: {key}.png is expected; --limit ends before it")
            where = f"{self.folder}/{file.name}"
            if file.label not in (None, label):
                raise ShardError(f"{where}: labels.csv says {file.label}, the original {label}; classes count from 0")
            image = _read_image(storage, file, where)
            _require_within_budget(where, image, original, attack)
            pixels.append(image.unsqueeze(0))
        return torch.cat(pixels)


@dataclass(frozen=True)
class ExternalAttack:
    """The other program's attack, as results record it.

    Attributes:
        name: Its name in results.
        epsilon: Its budget on [0, 1]; no image may lie outside.
        norm: Norm of the budget.
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
        """The attack as JSON values: what is stored, fingerprinted and reported."""
        return {
            "kind": "ForeignAttack",  # as stores have it since before the class was renamed
            "name": self.name,
            "epsilon": str(self.epsilon),
            "norm": self.norm,
        }


def read_external_images(folder: str, *, source: str) -> ExternalImages:
    """Lists and hashes a folder's images, and reads its `labels.csv`, or NIPS 2017's `images.csv`, if there is one.

    Args:
        folder: A folder or `s3://` URL.
        source: Name of the model that the other program attacked.

    Raises:
        MissingError: There is no such folder.
        RecipeError: The source's name is empty, the folder has no images, two have one key, or the labels are invalid.
    """
    if not source:
        raise RecipeError("source = '': say what the other program attacked, by a target's name or tag if it is one")
    storage = Storage(folder)
    names = sorted(stored.key for stored in storage.list_folder())
    table = next((name for name in LABEL_TABLES if name in names), "")
    labels = _read_labels(f"{folder}/{table}", storage.get(table)) if table else {}
    files: dict[str, ImageFile] = {}
    for name in names:
        if PurePosixPath(name).suffix[1:].lower() not in IMAGE_EXTENSIONS:
            continue
        key = sample_key(PurePosixPath(name))
        if key in files:
            raise RecipeError(f"{folder}: {name} and {files[key].name} both have the key {key!r}")
        files[key] = ImageFile(name, sha256(storage.get(name)), labels.get(name))
    if not files:
        raise RecipeError(f"{folder}: no images; a folder of PNG is expected, named as the originals are")
    return ExternalImages(source, storage.url, files)


def require_unchanged_images(images: ExternalImages, attack: ExternalAttack, ledger: Ledger) -> set[str]:
    """Refuses images that differ from those that a store has under the attack's name; accepts additional images.

    Returns:
        The keys of the folder's images that the store has.

    Raises:
        RecipeError: An image differs.
    """
    identity = make_id(attack.name, attack.provenance())
    units = [unit for unit in ledger.list_units("adversarial") if (unit.source, unit.attack) == (images.id, identity)]
    stored: set[str] = set()
    for marker in ledger.read_markers(units):
        digests = marker.fact("files")
        for key, digest in digests.items():
            if key not in images.files:
                continue
            stored.add(key)
            if images.files[key].sha256 != digest:
                raise RecipeError(
                    f"{images.folder}/{images.files[key].name}: not the image that {ledger.storage.url} holds of "
                    f"{attack.name!r}; give these another --name"
                )
    return stored


def _read_labels(where: str, data: bytes) -> dict[str, int]:
    """File name → class, from the bytes of a CSV file."""
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        labels = {row["filename"]: row["label"].strip() for row in map(normalized_row, rows)}
    except (UnicodeDecodeError, KeyError, AttributeError, csv.Error) as error:
        raise RecipeError(f"{where}: expected the columns filename,label in every line") from error
    invalid = next((name for name, label in labels.items() if not re.fullmatch(r"[0-9]{1,9}", label)), None)
    if invalid is not None:
        raise RecipeError(f"{where}: the label of {invalid!r} is not a class index")
    return {name: int(label) for name, label in labels.items()}


def _read_image(storage: Storage, file: ImageFile, where: str) -> Tensor:
    """One image, (3, H, W) uint8."""
    try:
        return codec.decode(storage.get(file.name, sha256_hex=file.sha256))
    except SampleError as error:
        raise ShardError(f"{where}: {error}") from error
    except (MissingError, IntegrityError) as error:
        raise IntegrityError(f"{where}: changed since the run began: {error}") from error


def _require_within_budget(where: str, image: Tensor, original: Tensor, attack: ExternalAttack) -> None:
    """Compares an image with its original in whole 8-bit levels; in L2, by the squares of the distances."""
    if image.shape != original.shape:
        sizes = " and ".join(f"{shape[2]} x {shape[1]}" for shape in (image.shape, original.shape))
        raise ShardError(f"{where}: it and its original have {sizes} pixels; see data.preparation")
    change = image.to(torch.int64) - original.to(torch.int64)
    if attack.norm == "linf":
        distance = int(change.abs().max())
        maximum = codec.levels(attack.epsilon)
        readable = f"{distance}/255"
    else:
        distance = int((change**2).sum())
        maximum = codec.squared_levels(attack.epsilon)
        readable = f"{distance**0.5 / 255:.4f} in L2"
    if distance > maximum:
        raise ShardError(
            f"{where}: {readable} from its original, more than epsilon = {attack.epsilon}; give the budget that it was "
            "made with, and a data.preparation that keeps the pixels that it was made from"
        )
