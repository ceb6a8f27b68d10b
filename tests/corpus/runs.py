"""Whole commands on shards of which nothing can be made: each is told before a worker starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

from jobs.runners import generate
from pipeline.data import codec
from tests.corpus import cases
from tests.corpus.cases import Refusal, case
from tests.samples import SIDE, jpeg, sample, write_recipe, write_shard


def gnp(*arguments: object) -> str:
    """As `cases.gnp`, but Ray does not start meanwhile: it would be that of this process, and of all cases after it."""
    with mock.patch.object(generate, "_is_empty", return_value=False):
        return cases.gnp(*arguments)


# Samples of the only shard, lines of `[data]`, attacks, and the line.
SHARDS: Mapping[str, tuple[Sequence[Mapping[str, object]], str, str, str]] = {
    "no labels": ([{"__key__": "a", "jpg": jpeg(0)}], "", '"i"', "1 of 1: no label: no cls; its files are jpg"),
    "labels from 1 to 10 of 10 classes": ([{**sample(0), "cls": b"10"}], "", '"i"', r"label 10 lies outside 0\.\.9"),
    "labels that are names": ([{**sample(0), "cls": b"cat"}], "", '"i"', "the label is no whole number: b'cat'"),
    "labels elsewhere": ([sample(0)], 'label = "json:label"', '"i"', "no label: no json; its files are cls, jpg"),
    "images that are none": ([{**sample(0), "jpg": b"<html>"}], "", '"i"', "1 of 1: undecodable image"),
    "images in another format": ([{"__key__": "a", "cls": b"0", "tiff": b""}], "", '"i"', "no image: none of jpg"),
    "target classes that are missing": (
        [sample(0)],
        "",
        '{ attack = "mi", target_class = "shard" }',
        "sample 'image00000' has no target class",
    ),
    "no samples": ([], "", '"i"', "shard s: .*no samples"),
}
for name, (samples, data, attacks, line) in SHARDS.items():

    @case("runs", f"generate on a shard with {name}", Refusal(line))
    def _(
        folder: Path,
        samples: Sequence[Mapping[str, object]] = samples,
        data: str = data,
        attacks: str = f"attacks = [{attacks}]",
    ) -> object:
        write_shard(folder / "in" / "s.tar", samples)
        recipe = write_recipe(folder, folder / "none.pt", attacks=attacks, data=data)
        return gnp("generate", recipe, "--store", folder / "store")


@case("runs", "generate on a shard that was cut off", Refusal("shard s: not a complete tar"))
def cut_off(folder: Path) -> object:
    shard = write_shard(folder / "in" / "s.tar", [sample(0)])
    shard.write_bytes(shard.read_bytes()[:1000])
    return gnp("generate", write_recipe(folder, folder / "none.pt"), "--store", folder / "store")


# File names of another program's images, how far they are from gray originals, and the line.
FOLDERS: Mapping[str, tuple[str, int, str]] = {
    "images of other names": ("adv_0.png", 0, "no image for 'a': looked for a.png.*such as adv_0.png"),
    "images outside the budget": ("a.png", 17, "17/255 from its original, more than epsilon = 16/255"),
}
for name, (file, change, line) in FOLDERS.items():

    @case("runs", f"score a folder with {name}", Refusal(line))
    def _(folder: Path, file: str = file, change: int = change) -> object:
        pixels = codec.decode(jpeg(0, side=SIDE)).clamp(20, 200)
        write_shard(folder / "in" / "s.tar", [{"__key__": "a", "png": codec.encode(pixels), "cls": b"0"}])
        (folder / "adv").mkdir()
        (folder / "adv" / file).write_bytes(codec.encode(pixels + change))
        recipe = write_recipe(folder, folder / "none.pt")
        return gnp("score", folder / "adv", recipe, "--store", folder / "store", "--name", "theirs")
