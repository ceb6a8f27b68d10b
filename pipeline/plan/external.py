"""Adversarial images that another program made: a folder of images that takes the place of an attack on a source.

They are matched to the recipe's images by name (`ExternalImages.find`), checked against the budget, and from then on
scored, audited and reported like other adversarial images. Their bytes are hashed when a run begins, and checked when
they are read: a file that changes during a run is an error, and so are other images under a name that a store already
has.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.attack.ball import BallNorm
from pipeline.data import codec
from pipeline.data.parts import Images
from pipeline.errors import IntegrityError, MissingError, RecipeError, SampleError, ShardError
from pipeline.ledger import Ledger, make_id
from pipeline.packing.label_tables import CSV_TABLES, read_labels
from pipeline.packing.labelled import has_image_extension, sample_key
from pipeline.storage import Storage, sha256

# Formats that do not keep pixels, as a rule.
_LOSSY = (".jpg", ".jpeg", ".webp")


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
        files: Path below the folder → image.
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

    def find(self, key: str) -> ImageFile | None:
        """The image of an original: by its key, taken for a path, or for the key that `gnp shards` gives to a path.

        Where neither is there, by the end of a path, such as its file name, if no other path ends so.
        """
        wanted = _plain(key)
        for index, name in (
            (self._by_path, wanted),
            (self._by_key, wanted),
            (self._by_end, wanted),
            (self._by_end, PurePosixPath(wanted).name),
        ):
            if len(index.get(name, ())) == 1:
                return index[name][0]
        return None

    @functools.cached_property
    def _by_path(self) -> Mapping[str, Sequence[ImageFile]]:
        return _grouped((_stem(PurePosixPath(path)), file) for path, file in self.files.items())

    @functools.cached_property
    def _by_key(self) -> Mapping[str, Sequence[ImageFile]]:
        return _grouped((key, file) for path, file in self.files.items() for key in _keys(PurePosixPath(path)))

    @functools.cached_property
    def _by_end(self) -> Mapping[str, Sequence[ImageFile]]:
        return _grouped(
            (name, file)
            for path, file in self.files.items()
            for start in range(len(PurePosixPath(path).parts))
            for end in [PurePosixPath(*PurePosixPath(path).parts[start:])]
            for name in {_stem(end), *_keys(end)}
        )

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
        used: dict[str, str] = {}
        for key, label, original in zip(images.keys, images.labels.tolist(), images.pixels, strict=True):
            file = self.find(key)
            if file is None:
                there = ", ".join(list(self.files)[:3])
                raise ShardError(
                    f"{self.folder}: no image for {key!r}: looked for {_plain(key)}.png, also in folders; there are "
                    f"{len(self.files)} images, such as {there}; --limit N takes the first N only"
                )
            if used.setdefault(file.name, key) != key:
                raise ShardError(f"{self.folder}/{file.name}: the only image for both {used[file.name]!r} and {key!r}")
            where = f"{self.folder}/{file.name}"
            if file.label not in (None, label):
                raise ShardError(f"{where}: labels.csv says {file.label}, the original {label}; classes count from 0")
            image = _read_image(storage, file, where)
            try:
                _require_within_budget(where, image, original, attack)
            except ShardError as error:
                if PurePosixPath(file.name).suffix.lower() in _LOSSY:
                    raise ShardError(f"{error}; JPEG and WebP change pixels: save the images as PNG") from None
                raise
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
    names = sorted(stored.key for stored in storage.list())
    table = next((name for name in CSV_TABLES if name in names), "")
    labels = _read_labels(f"{folder}/{table}", storage.get(table)) if table else {}
    files: dict[str, ImageFile] = {}
    paths: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        if not has_image_extension(name) or any(part.startswith(".") for part in path.parts):
            continue
        plain = _stem(path)
        if plain in paths:
            raise RecipeError(f"{folder}: {paths[plain]} and {name} are two images of one name; remove one")
        paths[plain] = name
        label = next((labels[known] for known in (name, path.name, path.stem) if known in labels), None)
        files[name] = ImageFile(name, sha256(storage.get(name)), label)
    if not files:
        there = f"; it holds {', '.join(names[:3])}" if names else ""
        raise RecipeError(f"{folder}: no images; a folder of PNG is expected, named as the originals are{there}")
    return ExternalImages(source, storage.url, files)


def require_unchanged_images(images: ExternalImages, attack: ExternalAttack, ledger: Ledger) -> set[str]:
    """Refuses images that differ from those that a store has under the attack's name; accepts additional images.

    Returns:
        The folder's images that the store has, by path.

    Raises:
        RecipeError: An image differs.
    """
    identity = make_id(attack.name, attack.provenance())
    units = [unit for unit in ledger.list_units("adversarial") if (unit.source, unit.attack) == (images.id, identity)]
    stored: set[str] = set()
    for marker in ledger.read_markers(units):
        digests = marker.fact("files")
        for key, digest in digests.items():
            file = images.find(key)
            if file is None:
                continue
            stored.add(file.name)
            if file.sha256 != digest:
                raise RecipeError(
                    f"{images.folder}/{file.name}: not the image that {ledger.storage.url} holds of "
                    f"{attack.name!r}; give these another --name"
                )
    return stored


def _read_labels(where: str, data: bytes) -> dict[str, int]:
    """File name → class, from the bytes of a CSV file."""
    try:
        return read_labels(data.decode("utf-8-sig"), where)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{where}: not UTF-8 text") from error


def _plain(name: str) -> str:
    """A key or path without a leading `./`, in Unicode's composed form, which file systems do not all keep."""
    return unicodedata.normalize("NFC", name).removeprefix("./")


def _stem(path: PurePosixPath) -> str:
    return _plain(path.with_suffix("").as_posix())


def _keys(path: PurePosixPath) -> set[str]:
    """The keys that `gnp shards` gives to a path: today's, and earlier ones, in which much became an underscore."""
    return {sample_key(path), re.sub(r"[^A-Za-z0-9_-]", "_", path.with_suffix("").as_posix())}


def _grouped(pairs: Iterable[tuple[str, ImageFile]]) -> dict[str, list[ImageFile]]:
    groups: dict[str, list[ImageFile]] = {}
    for name, file in pairs:
        groups.setdefault(name, []).append(file)
    return groups


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
