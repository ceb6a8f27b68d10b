"""Folders of images that people pack with `gnp shards`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.data.sample import Sample
from pipeline.data.shards import read_samples
from pipeline.packing.pack import pack
from tests.corpus.cases import Refusal, case, gnp
from tests.samples import jpeg

JPEG = jpeg(0)


def write(folder: Path, *names: str, data: bytes = JPEG) -> Path:
    """Writes files with their folders; an image by default."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def packed(source: Path, out: Path, **options: Path) -> dict[str, int]:
    """Key → label of everything in the shards that are packed from a source."""
    shards = pack(
        source, str(out), name="x", per_shard=1000, classes=options.get("classes"), labels=options.get("labels")
    )
    samples = [
        each for name in shards.shards for each in read_samples((out / name).read_bytes(), name=name, classes=10**9)
    ]
    assert all(isinstance(each, Sample) for each in samples)
    return {each.key: each.label for each in samples if isinstance(each, Sample)}


def labels(source: Path, out: Path, **options: Path) -> list[int]:
    """The distinct labels in the order of the samples."""
    return list(dict.fromkeys(packed(source, out, **options).values()))


# Class folders, each with an image, and the labels of their images in the order of the shards.
NAMES: Mapping[str, tuple[Sequence[str], object]] = {
    "whole numbers": ([str(index) for index in range(12)], [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
    "whole numbers with zeros in front": (["000", "001", "010"], [0, 1, 10]),
    "some whole numbers": (["3", "7"], [3, 7]),
    "a number twice": (["7", "07"], Refusal("two class folders are the same number")),
    "numbers and names": (["0", "1", "cat"], Refusal(r"numbers \(0\), others names \(cat\).*--classes")),
    "some synsets of ImageNet": (["n01440764", "n02085620", "n15075141"], [0, 151, 999]),
    "synsets of which one is not in ImageNet-1k": (
        ["n01440764", "n99999999"],
        Refusal("are not .n99999999.*--classes"),
    ),
    "synsets of which none is in ImageNet-1k": (["n99999998", "n99999999"], [0, 1]),
    "synsets with names": (["n02085620-Chihuahua", "n02085782-Spaniel"], [0, 1]),
    "names": (["dog", "cat", "Ant"], [0, 1, 2]),
    "numbered names": (["class1", "class2", "class10"], [0, 1, 2]),
    "names in other scripts": (["猫", "犬", "чай"], [0, 1, 2]),
    "names with spaces and signs": (["a b", "a%b", "a&b"], [0, 1, 2]),
    "a hidden folder": (["cat", ".ipynb_checkpoints", ".git"], [0]),
    "folders that systems make": (["cat", "dog", "@eaDir", "lost+found", "__MACOSX", "$RECYCLE.BIN"], [0, 1]),
    "thumbnails within a class": (["cat", "cat/@eaDir", "dog"], [0, 1]),
    "folders within classes": (["cat/old", "cat/new", "dog"], [0, 1]),
    "train and val": (["train/cat", "train/dog", "val/cat", "val/dog"], Refusal("are splits.*did you mean .*/train")),
    "train, val and test of which test has no classes": (["test", "train/cat", "val/cat"], Refusal("mean .*/train")),
    "only a validation set": (["val/cat", "val/dog"], Refusal("is a split, not classes; did you mean .*/val")),
    "a class called train": (["bus", "train"], [0, 1]),
    "one folder in between": (["images/cat", "images/dog"], Refusal("would be the only class.*did you mean .*/images")),
    "one class": (["cat"], [0]),
}
for name, (folders, expected) in NAMES.items():

    @case("folders", name, expected)
    def _(folder: Path, folders: Sequence[str] = folders) -> object:
        return labels(write(folder / "in", *(f"{each}/1.jpg" for each in folders)), folder / "out")


@case("folders", "an empty folder beside the classes", [0, 1])
def _(folder: Path) -> object:
    (folder / "in" / "another").mkdir(parents=True)
    return labels(write(folder / "in", "cat/1.jpg", "dog/1.jpg"), folder / "out")


@case("folders", "the output folder within the input", [0, 1])
def _(folder: Path) -> object:
    write(folder, "cat/1.jpg", "dog/1.jpg")
    (folder / "cards").mkdir()
    write(folder, "cards/preview.jpg")
    return labels(folder, folder / "cards")


@case("folders", "files of AppleDouble, texts and loose images", {"cat_1": 0})
def _(folder: Path) -> object:
    write(folder / "in", "cat/1.jpg", "cat/._1.jpg", "cat/notes.txt", "loose.jpg", ".DS_Store", "Thumbs.db")
    return packed(folder / "in", folder / "out")


@case("folders", "suffixes in capitals, and of all formats", ["cat_1", "cat_2", "cat_3", "cat_4", "cat_5", "cat_6"])
def _(folder: Path) -> object:
    write(folder / "in", "cat/1.JPG", "cat/2.JPEG", "cat/3.Png", "cat/4.webp", "cat/5.bmp", "cat/6.PPM")
    return list(packed(folder / "in", folder / "out"))


@case("folders", "only images of formats that are not read", Refusal("no labelled images"))
def _(folder: Path) -> object:
    return packed(write(folder / "in", "cat/1.gif", "cat/2.tiff", "cat/3.heic"), folder / "out")


@case("folders", "what is printed", True)
def _(folder: Path) -> object:
    write(folder / "in", *(f"c{index}/1.jpg" for index in range(12)), "c0/notes.txt", "loose.jpg")
    text = gnp("shards", folder / "in", folder / "out")
    wanted = (
        "left out 1, not an image",
        "left out 1, not in a class folder",
        "class 0: c0",
        "class 11: c9",
        "c10 before c2",
    )
    return all(each in text for each in (*wanted, "12 images of 12 classes, with labels 0 to 11", "1 shard in"))


# Class folders, and what is noted about them.
NOTES: Mapping[str, tuple[Sequence[str], str]] = {
    "synsets with names": (
        ["n02085620-Chihuahua", "n02085782-Spaniel"],
        "the names begin with synsets",
    ),
    "numbers from 1": (["1", "2", "3"], "the labels are 1 to 3, and labels count from 0"),
}
for name, (folders, expected) in NOTES.items():

    @case("folders", f"a note on {name}", True)
    def _(folder: Path, folders: Sequence[str] = folders, expected: str = expected) -> object:
        return expected in gnp("shards", write(folder / "in", *(f"{each}/1.jpg" for each in folders)), folder / "out")


@case("folders", "names that are not UTF-8", Refusal(r"f.xfc.jpg: the name is not UTF-8; rename it"))
def _(folder: Path) -> object:
    return packed(write(folder / "in", "cat/f\udcfc.jpg"), folder / "out")


@case("folders", "an empty file among images", {"cat_1": 0})
def _(folder: Path) -> object:
    write(folder / "in", "cat/1.jpg")
    return packed(write(folder / "in", "cat/2.jpg", "dog/1.jpg", data=b""), folder / "out")


@case("folders", "only empty files", Refusal("no labelled images"))
def _(folder: Path) -> object:
    return packed(write(folder / "in", "cat/1.jpg", data=b""), folder / "out")


@case("folders", "classes.json beside the shards", {"cat": 0, "犬": 1})
def _(folder: Path) -> object:
    packed(write(folder / "in", "cat/1.jpg", "犬/1.jpg"), folder / "out")
    return json.loads((folder / "out" / "classes.json").read_text(encoding="utf-8"))


@case(
    "folders",
    "a second set with fewer classes beside the first",
    Refusal("classes.json numbers the classes otherwise.*--classes"),
)
def _(folder: Path) -> object:
    packed(write(folder / "train", "ant/1.jpg", "cat/1.jpg"), folder / "out")
    gnp("shards", write(folder / "val", "cat/2.jpg"), folder / "out", "--name", "val")
    return None


@case("folders", "a second set with the first one's classes", {"cat_2": 1})
def _(folder: Path) -> object:
    packed(write(folder / "train", "ant/1.jpg", "cat/1.jpg"), folder / "out")
    classes = folder / "out" / "classes.json"
    return packed(write(folder / "val", "cat/2.jpg"), folder / "other", classes=classes)


# Files for --classes, and the labels of cat and dog.
CLASSES: Mapping[str, tuple[bytes, object]] = {
    "a name per line": (b"dog\nbird\ncat\n", [2, 0]),
    "a name per line, from Windows": ("\ufeffdog\r\ncat\r\n".encode(), [1, 0]),
    "an object of indices": (b'{"cat": 5, "dog": 3}', [5, 3]),
    "a list": (b'["dog", "cat"]', [1, 0]),
    "an object by index": (b'{"0": "dog", "1": "cat"}', [1, 0]),
    "an object of synsets and names": (b'{"0": ["n1", "dog"], "1": ["n2", "cat"]}', [1, 0]),
    "an empty line": (b"dog\n\ncat\n", Refusal("line 2 is empty")),
    "a name twice": (b"dog\ncat\ndog\n", Refusal("'dog' stands in two lines")),
    "a name with two indices": (b'[["dog", "cat"], "cat"]', Refusal("both class 0 and class 1")),
    "a class is missing": (b"dog\nbird\n", Refusal("cat: --classes names no such class; it begins with dog, bird")),
    "nothing": (b"", Refusal("names no class")),
    "broken JSON": (b'{"cat": 0', Refusal("not JSON")),
    "other JSON": (b'{"cat": {"id": 1}}', Refusal("expected .*cat")),
    "not text": (b"\xff\xfe\x00\x01", Refusal("cannot be read as UTF-8")),
}
for name, (data, expected) in CLASSES.items():

    @case("folders", f"--classes: {name}", expected)
    def _(folder: Path, data: bytes = data) -> object:
        write(folder, "names", data=data)
        return labels(write(folder / "in", "cat/1.jpg", "dog/1.jpg"), folder / "out", classes=folder / "names")


# Names of two images in one class, and the keys that they get.
KEYS: Mapping[str, tuple[Sequence[str], object]] = {
    "in other scripts": (["猫.jpg", "犬.jpg"], ["c_犬", "c_猫"]),
    "with dots and underscores": (["a.b.jpg", "a_b.jpg"], ["c_a%2Eb", "c_a_b"]),
    "copies": (["x.jpg", "x (1).jpg"], ["c_x", "c_x%20%281%29"]),
    "with accents": (["e\u0301.jpg", "f.jpg"], ["c_f", "c_\u00e9"]),
    "two suffixes": (["1.jpg", "1.png"], Refusal("would both have the key 'c_1'")),
}
for name, (files, expected) in KEYS.items():

    @case("folders", f"file names {name}", expected)
    def _(folder: Path, files: Sequence[str] = files) -> object:
        return sorted(packed(write(folder / "in", *(f"c/{each}" for each in files)), folder / "out"))


def linked_class(folder: Path) -> None:
    write(folder / "elsewhere", "1.jpg")
    (folder / "in" / "dog").symlink_to(folder / "elsewhere", target_is_directory=True)


def linked_image(folder: Path) -> None:
    write(folder / "elsewhere", "1.jpg")
    (folder / "in" / "dog").mkdir()
    (folder / "in" / "dog" / "1.jpg").symlink_to(folder / "elsewhere" / "1.jpg")


def linked_circle(folder: Path) -> None:
    (folder / "in" / "cat" / "again").symlink_to(folder / "in", target_is_directory=True)


def broken_link(folder: Path) -> None:
    (folder / "in" / "cat" / "2.jpg").symlink_to(folder / "nowhere.jpg")


LINKS: Mapping[str, tuple[Callable[[Path], None], object]] = {
    "a class behind a link": (linked_class, {"cat_1": 0, "dog_1": 1}),
    "an image behind a link": (linked_image, {"cat_1": 0, "dog_1": 1}),
    "a circle of links": (linked_circle, Refusal("a link to a folder that it lies in")),
    "a link to nothing": (broken_link, {"cat_1": 0}),
}
for name, (link, expected) in LINKS.items():

    @case("folders", name, expected)
    def _(folder: Path, link: Callable[[Path], None] = link) -> object:
        write(folder / "in", "cat/1.jpg")
        link(folder)
        return packed(folder / "in", folder / "out")


# What stands in the place of the source.
SOURCES: Mapping[str, tuple[Callable[[Path], Path], object]] = {
    "no folder": (lambda folder: folder / "nowhere", Refusal("no such folder")),
    "an empty folder": (lambda folder: folder, Refusal("no labelled images")),
    "an archive": (lambda folder: write(folder, "x.zip", data=b"PK\3\4") / "x.zip", Refusal("not a readable Parquet")),
}
for name, (make, expected) in SOURCES.items():

    @case("folders", f"{name} for the source", expected)
    def _(folder: Path, make: Callable[[Path], Path] = make) -> object:
        return packed(make(folder), folder / "out")
