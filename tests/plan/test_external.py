"""Another program's adversarial images: read, checked, and scored by `gnp score`."""

import io
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from jobs import tables
from jobs.runners import generate, score
from pipeline.analysis.compare import compare
from pipeline.analysis.report import summarise
from pipeline.data import codec, parts
from pipeline.data.parts import Images
from pipeline.errors import IntegrityError, MissingError, RecipeError, ShardError
from pipeline.ledger import Ledger
from pipeline.maintenance import finalize, verify
from pipeline.plan import external
from pipeline.plan.external import ExternalAttack
from pipeline.storage import Storage
from tests.samples import sample, write_recipe, write_shard

KEYS = ("a", "b")


def originals() -> Images:
    torch.manual_seed(0)
    pixels = torch.randint(20, 230, (2, 3, 8, 10), dtype=torch.uint8)
    return Images(KEYS, torch.tensor([3, 1]), pixels, torch.tensor([-1, -1]))


def save(folder: Path, pixels: Tensor, *, labels: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for key, image in zip(KEYS, pixels, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{key}.png")
    if labels:
        (folder / "labels.csv").write_text(labels)
    return folder


def external_attack() -> ExternalAttack:
    return ExternalAttack("theirs", Fraction(8, 255), "linf")


def test_images_are_matched_by_name_and_kept_as_they_are(tmp_path: Path) -> None:
    images = originals()
    save(tmp_path, images.pixels + 8, labels="filename,label,targeted_label\nb.png,1,5\na.png, 3,4\n")
    (tmp_path / "log.txt").write_text("of another program")
    folder = external.read_external_images(str(tmp_path), source="resnet50")
    assert set(folder.files) == {f"{key}.png" for key in KEYS}
    assert torch.equal(folder.read_pixels(images, external_attack()), images.pixels + 8)
    assert (
        folder.read_pixels(
            replace(images, keys=(), labels=images.labels[:0], pixels=images.pixels[:0]), external_attack()
        ).shape[0]
        == 0
    )


def outside_budget(folder: Path) -> None:
    pixels = originals().pixels.clone()
    pixels[1, 0, 0, 0] += 9
    save(folder, pixels)


def wrong_size(folder: Path) -> None:
    save(folder, originals().pixels[..., :-1])


def missing_image(folder: Path) -> None:
    (save(folder, originals().pixels) / "b.png").unlink()


def undecodable_image(folder: Path) -> None:
    (save(folder, originals().pixels) / "b.png").write_bytes(b"png")


def labels_from_one(folder: Path) -> None:
    save(folder, originals().pixels, labels="filename,label\na.png,4\nb.png,2\n")


@pytest.mark.parametrize(
    ("break_folder", "message"),
    [
        (outside_budget, r"/b\.png: 9/255 from its original, more than epsilon = 8/255; give the budget"),
        (wrong_size, r"/a\.png: it and its original have 9 x 8 and 10 x 8 pixels; see data\.preparation"),
        (
            missing_image,
            r"no image for 'b': looked for b\.png, also in folders; there are 1 images, such as a",
        ),
        (undecodable_image, r"/b\.png: undecodable image"),
        (labels_from_one, r"/a\.png: labels\.csv says 4, the original 3; classes count from 0"),
    ],
)
def test_an_image_that_does_not_match_its_original_is_refused_by_name(
    break_folder: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    break_folder(tmp_path)
    folder = external.read_external_images(str(tmp_path), source="net")
    with pytest.raises(ShardError, match=message):
        folder.read_pixels(originals(), external_attack())


def test_the_budget_is_checked_in_its_norm(tmp_path: Path) -> None:
    images = originals()
    save(tmp_path, images.pixels + 8)
    folder = external.read_external_images(str(tmp_path), source="net")
    length = Fraction(8) * Fraction(int(np.ceil(np.sqrt(3 * 8 * 10))), 255)
    assert len(folder.read_pixels(images, ExternalAttack("theirs", length, "l2"))) == 2
    with pytest.raises(ShardError, match=r"0\.4860 in L2 from its original, more than epsilon = 2/5"):
        folder.read_pixels(images, ExternalAttack("theirs", Fraction(2, 5), "l2"))


def test_a_file_that_changes_during_a_run_is_refused(tmp_path: Path) -> None:
    save(tmp_path, originals().pixels)
    folder = external.read_external_images(str(tmp_path), source="net")
    save(tmp_path, originals().pixels + 1)
    with pytest.raises(IntegrityError, match=r"a\.png: changed since the run began"):
        folder.read_pixels(originals(), external_attack())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no images; a folder of PNG is expected"),
        ({"a.png": b"", "a.jpg": b""}, "a.jpg and a.png are two images of one name"),
        ({"a.png": b"", "labels.csv": b"name,label\na.png,3\n"}, "labels.csv: expected the columns filename,label"),
        ({"a.png": b"", "labels.csv": b"filename,label\na.png\n"}, "labels.csv line 2: the label '' is no class index"),
        ({"a.png": b"", "labels.csv": b"filename,label\na.png,x\n"}, "labels.csv line 2: the label 'x' is no class"),
        ({"a.png": b"", "labels.csv": b"\xff\xfe\x00"}, "labels.csv: not UTF-8 text"),
    ],
)
def test_an_invalid_folder_is_refused_in_one_line(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(RecipeError, match=message):
        external.read_external_images(str(tmp_path), source="net")


def test_an_empty_source_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="source = '': say what the other program attacked"):
        external.read_external_images(str(tmp_path), source="")


def test_labels_of_the_nips_2017_set_count_from_1(tmp_path: Path) -> None:
    images = originals()
    save(tmp_path, images.pixels)
    (tmp_path / "images.csv").write_text("ImageId,TrueLabel\nb,2\na,4\n")
    assert {
        key: file.label for key, file in external.read_external_images(str(tmp_path), source="net").files.items()
    } == {
        "a.png": 3,
        "b.png": 1,
    }


def test_a_missing_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nowhere: no such folder"):
        external.read_external_images(str(tmp_path / "nowhere"), source="net")


@pytest.mark.journey
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_on_four_devices")
def test_external_copies_of_our_images_get_the_same_scores(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "in" / "s.tar", [sample(index) for index in range(6)])
    recipe = write_recipe(tmp_path, tiny_checkpoint, data="part_size = 4", engine="generators = 1")
    store, theirs = str(tmp_path / "store"), tmp_path / "theirs"
    theirs.mkdir()
    quiet = Console(file=io.StringIO(), width=200)
    assert generate.run(recipe, store, console=quiet) == 0
    ledger = Ledger(Storage(store))
    for marker in ledger.read_markers(ledger.list_units("adversarial")):
        images = parts.decode_tar(ledger.read_data(marker), name="ours")
        for key, pixels in zip(images.keys, images.pixels, strict=True):
            (theirs / f"{key}.png").write_bytes(codec.encode(pixels))
    (theirs / "image99999.png").write_bytes(codec.encode(pixels))

    def scored(epsilon: str, into: str = store) -> int:
        return score.run(score.ExternalFolder(str(theirs), "theirs", "tiny", epsilon), recipe, into, console=quiet)

    with pytest.raises(RecipeError, match="more than epsilon = 2/255"):
        scored("2/255", str(tmp_path / "other"))
    assert scored("16/255") == 0
    assert "1 of 7 images of" in capsys.readouterr().err
    compared = compare(ledger, base="i", denominator="all")
    (row,) = compared.by_target
    assert (row.attack, row.gradients, row.only_attack, row.only_base, row.n) == ("theirs", None, 0, 0, 6)
    tables.print_comparisons(compared, denominator="all", console=quiet)
    assert not verify.audit(ledger).problems
    success = {row.attack: row.rates["all"] for row in summarise(ledger).success}
    assert success["theirs"] == success["i"]
    assert finalize.finalize(ledger).images == 12
    (theirs / "image99998.png").write_bytes(codec.encode(pixels))
    assert scored("16/255") == 0, "and again, with nothing to do"
    assert "2 of 8 images of" in capsys.readouterr().err
    assert [row.attack for row in summarise(ledger).success] == ["i", "theirs"]
    (theirs / "image00003.png").write_bytes(codec.encode(pixels.flip(2)))
    with pytest.raises(
        RecipeError, match=r"image00003\.png: not the image that .* holds of 'theirs'; give these another"
    ):
        scored("16/255")
