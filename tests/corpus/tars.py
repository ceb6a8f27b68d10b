"""Shards that other tools made."""

import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pipeline.data import shard_list, shards
from pipeline.data.sample import Sample
from pipeline.plan.data_spec import DataSpec
from tests.corpus.cases import Refusal, case
from tests.samples import CLASSES, jpeg

JPEG = jpeg(0)


def tar(members: Iterable[tuple[str, bytes]], mode: str = "w", **options: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(folder: Path, data: bytes, *, name: str = "s.tar", label: str = "cls") -> list[tuple[str, object]]:
    """Key and label of each sample of a shard, or why it cannot be used; read as a run does."""
    (folder / name).write_bytes(data)
    spec = DataSpec("data", (str(folder / name),), classes=CLASSES, label=label)
    (file,) = shard_list.find_shards(spec.shards)
    with shards.download_shard(file) as shard:
        samples = list(shard.samples(range(len(shard)), classes=spec.classes, label=spec.label))
    return [(each.key, each.label if isinstance(each, Sample) else each.reason) for each in samples]


PAIR = (("a.jpg", JPEG), ("a.cls", b"3"))
# Tars, and the keys and labels that are read.
TARS: Mapping[str, tuple[Callable[[], bytes], object]] = {
    "as it should be": (lambda: tar(PAIR), [("a", 3)]),
    "names that begin with ./": (lambda: tar((f"./{name}", data) for name, data in PAIR), [("./a", 3)]),
    "nested names": (lambda: tar((f"x/y/{name}", data) for name, data in PAIR), [("x/y/a", 3)]),
    "names in other scripts": (lambda: tar((f"猫{name}", data) for name, data in PAIR), [("猫a", 3)]),
    "names of 200 characters": (lambda: tar(("x" * 199 + name, data) for name, data in PAIR), [("x" * 199 + "a", 3)]),
    "extensions in capitals": (lambda: tar([("a.JPG", JPEG), ("a.CLS", b"3")]), [("a", 3)]),
    "the label first": (lambda: tar(PAIR[::-1]), [("a", 3)]),
    "a label with a line break": (lambda: tar([("a.jpg", JPEG), ("a.cls", b" 3\n")]), [("a", 3)]),
    "a label that is a name": (
        lambda: tar([("a.jpg", JPEG), ("a.cls", b"cat")]),
        [("a", "the label is no whole number: b'cat'")],
    ),
    "a label from 1": (lambda: tar([("a.jpg", JPEG), ("a.cls", b"10")]), [("a", "label 10 lies outside 0..9")]),
    "all images, then all labels": (
        lambda: tar([("a.jpg", JPEG), ("b.jpg", JPEG), ("a.cls", b"3"), ("b.cls", b"4")]),
        Refusal("files of sample 'a' are not next to each other.*--sort=name"),
    ),
    "a sample twice": (
        lambda: tar([*PAIR, ("b.jpg", JPEG), ("b.cls", b"4"), *PAIR]),
        [("a", 3), ("b", 4), ("a", "a sample of this key stands earlier in the shard")],
    ),
    "dots in names": (
        lambda: tar([("a.v2.jpg", JPEG), ("a.v2.cls", b"3")]),
        [("a", "no label: no cls; its files are v2.cls, v2.jpg; data.label says where it is")],
    ),
    "dots in names of images": (
        lambda: tar([("a.v2.jpg", JPEG), ("a.cls", b"3")]),
        [("a", "no image: 'v2.jpg' counts as the extension, all after the first dot; rename it")],
    ),
    "dots in folders": (lambda: tar((f"v1.0/{name}", data) for name, data in PAIR), [("v1.0/a", 3)]),
    "images without labels": (
        lambda: tar([("a.jpg", JPEG)]),
        [("a", "no label: no cls; its files are jpg; data.label says where it is")],
    ),
    "labels without images": (
        lambda: tar([("a.cls", b"3"), ("a.json", b"{}")]),
        [("a", "no image: none of jpg, jpeg, png, webp, bmp, ppm; its files are cls, json")],
    ),
    "AppleDouble files": (
        lambda: tar([("._a.jpg", b"mac"), *PAIR]),
        [("a", 3), ("._a.jpg", "not a sample: a file is named KEY.EXTENSION, its name does not begin with a dot")],
    ),
    "gzip": (lambda: gzip.compress(tar(PAIR)), [("a", 3)]),
    "gzip cut off": (lambda: gzip.compress(tar(PAIR))[:-300], Refusal("not a complete gzip file")),
    "gzip with a wrong checksum": (
        lambda: gzip.compress(tar(PAIR))[:-8] + bytes(8),
        Refusal("not a complete gzip file .CRC check failed"),
    ),
    "gzip within gzip": (lambda: gzip.compress(gzip.compress(tar(PAIR))), Refusal("not a complete tar")),
    "xz": (lambda: lzma.compress(tar(PAIR)), Refusal("not a complete tar")),
    "cut off": (lambda: tar(PAIR)[:2500], Refusal("truncated|not a complete tar|damaged")),
    "empty": (lambda: b"", Refusal("not a complete tar")),
    "a page of HTML": (lambda: b"<html>404</html>" * 100, Refusal("not a complete tar")),
    "a pointer of Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\n", Refusal("not a complete tar")),
    "no members": (lambda: tar([]), []),
    "a pax archive": (lambda: tar(PAIR, format=tarfile.PAX_FORMAT), [("a", 3)]),
    "a v7 archive": (lambda: tar(PAIR, format=tarfile.USTAR_FORMAT), [("a", 3)]),
    "two tars one after the other": (lambda: tar(PAIR) + tar([("b.jpg", JPEG)]), Refusal("damaged at byte")),
}
for name, (make, expected) in TARS.items():

    @case("tars", name, expected)
    def _(folder: Path, make: Callable[[], bytes] = make) -> object:
        return read(folder, make())


# Labels in files of samples, the recipe's data.label, and the label that is read.
LABELS: Mapping[str, tuple[str, bytes, str, object]] = {
    "in JSON": ("json", json.dumps({"label": 3}).encode(), "json:label", 3),
    "deep in JSON": ("json", json.dumps({"meta": {"label": 3}}).encode(), "json:meta.label", 3),
    "in JSON as text": ("json", json.dumps({"label": "3"}).encode(), "json:label", 3),
    "in JSON as a fraction": (
        "json",
        json.dumps({"label": 3.0}).encode(),
        "json:label",
        "the label is no whole number: 3.0",
    ),
    "in JSON as a truth value": (
        "json",
        json.dumps({"label": True}).encode(),
        "json:label",
        "the label is no whole number: True",
    ),
    "in JSON under another name": (
        "json",
        json.dumps({"class": 3}).encode(),
        "json:label",
        "no label: its JSON has no 'label'; its fields are class",
    ),
    "in JSON that is a list": ("json", b"[3]", "json:label", "no label: its JSON has no 'label'"),
    "in broken JSON": ("json", b"{", "json:label", "no label: its JSON cannot be read"),
    "in JSON of 100,000 brackets": ("json", b"[" * 100_000, "json:label", "no label: its JSON cannot be read"),
    "in another extension": ("class", b"3", "class", 3),
    "in text": ("label.txt", b"3", "label.txt", 3),
    "in NumPy's format": ("npy", b"\x93NUMPY\x01\x00", "npy", "the label is no whole number: b'\\x93NUMPY\\x01\\x00'"),
}
for name, (extension, data, label, expected) in LABELS.items():

    @case("tars", f"the label {name}", [("a", expected)])
    def _(folder: Path, extension: str = extension, data: bytes = data, label: str = label) -> object:
        return read(folder, tar([("a.jpg", JPEG), (f"a.{extension}", data)]), label=label)


@case(
    "tars", "a data.label of no known form", Refusal("label = 'json:': an extension such as \"cls\", or a JSON field")
)
def _(folder: Path) -> object:
    return read(folder, b"", label="json:")


# Names of shards, and whether a shard of that name is found and read.
NAMES: Mapping[str, tuple[str, bytes, object]] = {
    ".tar.gz": ("s.tar.gz", gzip.compress(tar(PAIR)), [("a", 3)]),
    ".tgz": ("s.tgz", gzip.compress(tar(PAIR)), [("a", 3)]),
    ".tar.gz that is not compressed": ("s.tar.gz", tar(PAIR), [("a", 3)]),
    ".tar.xz": ("s.tar.xz", lzma.compress(tar(PAIR)), Refusal(r"'s.tar.xz' is not a .tar or .tar.gz")),
    ".zip": ("s.zip", b"PK", Refusal("'s.zip' is not a .tar")),
    "spaces and signs": ("a b#c%20.tar", tar(PAIR), [("a", 3)]),
    "another script": ("猫.tar", tar(PAIR), [("a", 3)]),
}
for name, (file_name, data, expected) in NAMES.items():

    @case("tars", f"a name with {name}", expected)
    def _(folder: Path, file_name: str = file_name, data: bytes = data) -> object:
        return read(folder, data, name=file_name)


@case("tars", "brackets in the name of the folder", [("a", 3)])
def _(folder: Path) -> object:
    (folder / "br[1]").mkdir()
    return read(folder / "br[1]", tar(PAIR), name="s[0].tar")


@case("tars", "one shard as .tar and .tar.gz", Refusal("gets the same name in results"))
def _(folder: Path) -> object:
    for file in ("s.tar", "s.tar.gz"):
        (folder / file).write_bytes(tar(PAIR))
    return shard_list.find_shards([f"{folder}/s.tar", f"{folder}/s.tar.gz"])
