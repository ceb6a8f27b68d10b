"""Folders of adversarial images that other tools made, matched to their originals."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.data import codec
from pipeline.data.parts import Images
from pipeline.plan import external
from pipeline.plan.external import ExternalAttack
from tests.corpus.cases import Refusal, case


def images(keys: Sequence[str]) -> Images:
    """Originals of 4 x 4 pixels, each of another brightness."""
    count = len(keys)
    pixels = (10 * torch.arange(count, dtype=torch.uint8)).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return Images(tuple(keys), torch.zeros(count, dtype=torch.int64), pixels, torch.full((count,), -1))


def matched(folder: Path, keys: Sequence[str], files: Sequence[str]) -> bool:
    """Whether each original is given its own adversarial image: one level brighter."""
    originals = images(keys)
    for file, pixels in zip(files, originals.pixels, strict=False):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(codec.encode(pixels + 1))
    found = external.read_external_images(str(folder), source="net")
    attack = ExternalAttack("theirs", Fraction(1, 255), "linf")
    return torch.equal(found.read_pixels(originals, attack), originals.pixels + 1)


# Keys of the originals, files of the other tool in the same order, and whether they find each other.
FOLDERS: Mapping[str, tuple[Sequence[str], Sequence[str], object]] = {
    "by key": (["a", "b"], ["a.png", "b.png"], True),
    "keys that begin with ./": (["./a", "./b"], ["a.png", "b.png"], True),
    "nested keys, the same folders": (["x/a", "y/a"], ["x/a.png", "y/a.png"], True),
    "nested keys, one folder": (["x/a", "y/b"], ["a.png", "b.png"], True),
    "nested keys, one folder with a name twice": (
        ["x/a", "y/a"],
        ["a.png"],
        Refusal("the only image for both 'x/a' and 'y/a'"),
    ),
    "keys in other scripts": (["猫", "犬"], ["猫.png", "犬.png"], True),
    "accents as macOS writes them": (["\u00e9"], ["e\u0301.png"], True),
    "an ImageFolder packed here, in its folders": (["cat_1", "dog_1"], ["cat/1.png", "dog/1.png"], True),
    "an ImageFolder packed here, below another folder": (["cat_1", "dog_1"], ["adv/cat/1.png", "adv/dog/1.png"], True),
    "an ImageFolder packed here, by key": (["cat_1", "dog_1"], ["cat_1.png", "dog_1.png"], True),
    "keys that were encoded": (["c_x%20%281%29"], ["c/x (1).png"], True),
    "keys of an earlier version": (["c_x__1_"], ["c/x (1).png"], True),
    "files in capitals": (["a"], ["a.PNG"], True),
    "two formats of one image": (["a"], ["a.png", "a.bmp"], True),
    "hidden copies": (["a", "b"], ["a.png", "b.png", "._a.png"], True),
    "an image is missing": (
        ["a", "b"],
        ["a.png"],
        Refusal("no image for 'b': looked for b.png.*there are 1 images, such as a.png"),
    ),
    "other names": (["a"], ["adv_0.png", "adv_1.png"], Refusal("no image for 'a'.*such as adv_0.png")),
}
for name, (keys, files, expected) in FOLDERS.items():

    @case("scoring", name, expected)
    def _(folder: Path, keys: Sequence[str] = keys, files: Sequence[str] = files) -> object:
        return matched(folder, keys, files)


@case("scoring", "tensors in place of images", Refusal("no images; a folder of PNG is expected.*it holds adv.pt"))
def _(folder: Path) -> object:
    (folder / "adv.pt").touch()
    return external.read_external_images(str(folder), source="net")


@case("scoring", "saved as JPEG", Refusal("JPEG and WebP change pixels: save the images as PNG"))
def _(folder: Path) -> object:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / "a.jpg")
    found = external.read_external_images(str(folder), source="net")
    return found.read_pixels(images(["a"]), ExternalAttack("theirs", Fraction(1, 255), "linf"))


@case("scoring", "a name and its copy in another format", Refusal("two images of one name"))
def _(folder: Path) -> object:
    (folder / "a.jpg").touch()
    return matched(folder, ["a"], ["a.png"])


# What is wrong with an image, and the line.
WRONG: Mapping[str, tuple[Callable[[torch.Tensor], bytes], str]] = {
    "outside the budget": (lambda pixels: codec.encode(pixels + 9), "9/255 from its original, more than epsilon"),
    "of another size": (
        lambda pixels: codec.encode(pixels[..., :-1]),
        "have 3 x 4 and 4 x 4 pixels; see data.preparation",
    ),
    "no image": (lambda _: b"png", "undecodable image"),
}
for name, (make, line) in WRONG.items():

    @case("scoring", name, Refusal(line))
    def _(folder: Path, make: Callable[[torch.Tensor], bytes] = make) -> object:
        originals = images(["a"])
        (folder / "a.png").write_bytes(make(originals.pixels[0]))
        found = external.read_external_images(str(folder), source="net")
        return found.read_pixels(originals, ExternalAttack("theirs", Fraction(8, 255), "linf"))
