"""Tables of labels: files that say which class each image of a folder has."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import scipy.io

from pipeline.data.sample_fields import IMAGE_EXTENSIONS
from pipeline.errors import RecipeError
from pipeline.packing.class_indices import label_index
from pipeline.packing.labelled import LabelledImage, LabelledImages, has_image_extension

# Beside adversarial images of other programs: TransferAttack's, and the NIPS 2017 set's under its two names.
CSV_TABLES = ("labels.csv", "images.csv", "dev_dataset.csv")
# Of ImageNet's validation set: Kaggle's, Caffe's, Tiny ImageNet's, TensorFlow's, and its own development kit's.
_SYNSET_LINES = "imagenet_2012_validation_synset_labels.txt"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
TABLES = (*CSV_TABLES, "LOC_val_solution.csv", "val.txt", "val_annotations.txt", _SYNSET_LINES, _GROUND_TRUTH)
# Where the images lie, seen from the folder of a table.
_IMAGE_FOLDERS = ("", "images", "val")
_KIT = "ILSVRC2012_devkit_t12/data"
_NUMBERED = re.compile(r"ILSVRC2012_val_([0-9]{8})")
_NOT_AN_IMAGE = "listed, but not an image"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        where: File and line, for messages.
        name: File name, possibly without its extension.
        label: The label as it is written.
        target: The target class as it is written; None where the table has none.
    """

    where: str
    name: str
    label: str
    target: str | None = None


def find_table(folder: Path) -> Path | None:
    """The table of labels in a folder, by its usual name.

    Raises:
        RecipeError: There are several.
    """
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        raise RecipeError(f"{folder}: {found[0].name} and {found[1].name} both hold labels; choose one with --labels")
    return found[0] if found else None


def read_labelled(folder: Path, table: Path, *, names: Mapping[str, int]) -> LabelledImages:
    """Lists the images that a table of labels names.

    Args:
        folder: Where the images lie, or in `images/` or `val/` below it.
        table: The table: CSV with the columns filename and label, and optionally targeted_label; NIPS 2017's;
            ImageNet's LOC_val_solution.csv; lines of a file name and a label; or lines of labels alone for ImageNet's
            numbered validation images, as synsets or as its development kit has them.
        names: Class name → index, for labels that are names.

    Raises:
        RecipeError: The table cannot be read, a file is missing, or a label is no class index.
    """
    images: list[LabelledImage] = []
    left_out: list[str] = []
    for row in _rows(table, folder):
        name, path = _find_image(folder, row)
        label = _index(row, row.label, names, "label")
        target = None if row.target is None else _index(row, row.target, names, "targeted label")
        if has_image_extension(name.name):
            images.append(LabelledImage(name, str(path), label, path.read_bytes, target))
        else:
            left_out.append(str(path))
    return LabelledImages(images, names, {_NOT_AN_IMAGE: left_out} if left_out else {})


def read_csv_rows(text: str, where: str) -> Iterator[Row]:
    """The rows of a CSV table with the columns filename and label, or of NIPS 2017's or Kaggle's ImageNet.

    NIPS 2017's tables count classes from 1; theirs and Kaggle's name files without the extension.

    Raises:
        RecipeError: It has other columns, or a row lacks one.
    """
    with io.StringIO(text, newline="") as file:
        rows = csv.DictReader(file)
        columns = list(rows.fieldnames or ())
        repeated = next((column for column in columns if columns.count(column) > 1), None)
        if repeated is not None:
            raise RecipeError(f"{where}: two columns are called {repeated!r}; rename one")
        convert = next((convert for needed, convert in _CONVERTERS if needed <= set(columns)), None)
        if convert is None:
            found = ",".join(columns).replace("\t", "\\t")
            remedy = "; separate them by commas" if re.search(r"[;\t]", "".join(columns)) else ""
            raise RecipeError(f"{where}: expected the columns filename,label; found {found[:300]}{remedy}")
        try:
            for row in rows:
                yield convert(f"{where} line {rows.line_num}", row)
        except csv.Error as error:
            raise RecipeError(f"{where} line {rows.line_num}: not CSV ({error})") from error


def _from_csv(where: str, row: Mapping[str, str]) -> Row:
    return Row(where, row["filename"] or "", row["label"] or "", row.get("targeted_label"))


def _from_nips(where: str, row: Mapping[str, str]) -> Row:
    label, target = (row.get(column) for column in ("TrueLabel", "TargetClass"))
    return Row(where, row["ImageId"] or "", _from_zero(label or ""), None if target is None else _from_zero(target))


def _from_kaggle(where: str, row: Mapping[str, str]) -> Row:
    return Row(where, row["ImageId"] or "", (row["PredictionString"] or "").partition(" ")[0])


_CONVERTERS: tuple[tuple[set[str], Callable[[str, Mapping[str, str]], Row]], ...] = (
    ({"filename", "label"}, _from_csv),
    ({"ImageId", "TrueLabel"}, _from_nips),
    ({"ImageId", "PredictionString"}, _from_kaggle),
)


def _from_zero(label: str) -> str:
    return str(int(label) - 1) if re.fullmatch(r"[0-9]{1,9}", label.strip()) else label


def _rows(table: Path, folder: Path) -> Iterator[Row]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{table}: cannot be read as UTF-8 text ({error})") from error
    if table.suffix.lower() == ".csv":
        return read_csv_rows(text, str(table))
    lines = [line.split() for line in text.rstrip().splitlines()]
    if lines and all(len(words) == 1 for words in lines):
        return _numbered_rows(table, folder, [words[0] for words in lines])
    return _line_rows(table, lines)


def _line_rows(table: Path, lines: Sequence[Sequence[str]]) -> Iterator[Row]:
    for number, words in enumerate(lines, 1):
        if len(words) < 2:
            raise RecipeError(f"{table} line {number}: expected a file name and a label")
        yield Row(f"{table} line {number}", words[0], words[1])


def _numbered_rows(table: Path, folder: Path, labels: Sequence[str]) -> Iterator[Row]:
    """Rows of a table that has the label of ImageNet's n-th validation image in its n-th line."""
    if all(label.isdecimal() for label in labels):
        synsets = _kit_synsets(table, folder)
        unknown = next((label for label in labels if int(label) not in synsets), None)
        if unknown is not None:
            raise RecipeError(f"{table}: {unknown} is no class number of ImageNet's development kit")
        labels = [synsets[int(label)] for label in labels]
    places = [folder / name for name in _IMAGE_FOLDERS if (folder / name).is_dir()]
    files = sorted({path.name: path for place in places for path in place.iterdir() if path.is_file()}.values())
    for path in files:
        number = _NUMBERED.fullmatch(path.stem)
        if number is None or not has_image_extension(path.name):
            continue
        line = int(number[1])
        if not 1 <= line <= len(labels):
            raise RecipeError(f"{table}: it has {len(labels):,} lines, and none for {path.name}")
        yield Row(f"{table} line {line}", path.name, labels[line - 1])


def _kit_synsets(table: Path, folder: Path) -> dict[int, str]:
    """ImageNet's own numbers of the classes → synset, from the development kit's `meta.mat`.

    Raises:
        RecipeError: It is not beside the table or the images, or not readable.
    """
    near = (table.parent, folder, folder.parent, folder / _KIT, folder.parent / _KIT)
    file = next((place / "meta.mat" for place in near if (place / "meta.mat").is_file()), None)
    if file is None:
        raise RecipeError(
            f"{table}: its numbers are those of ImageNet's development kit, in another order than the class indices; "
            "put the kit's meta.mat beside it, or use LOC_val_solution.csv"
        )
    try:
        synsets = scipy.io.loadmat(file, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # on a file of another kind, scipy raises errors of any type
        raise RecipeError(f"{file}: not the development kit's meta.mat ({type(error).__name__}: {error})") from error


def _find_image(folder: Path, row: Row) -> tuple[PurePosixPath, Path]:
    """The file that a row names: its name with its extension, and its path.

    Raises:
        RecipeError: There is none in the folder.
    """
    name = PurePosixPath(row.name)
    if row.name and not name.is_absolute() and ".." not in name.parts:
        for endings in ([""], [f".{extension}" for extension in ("JPEG", *IMAGE_EXTENSIONS)]):
            names = [f"{name}{ending}" for ending in endings]
            found = [
                (named, place) for named in names for place in _IMAGE_FOLDERS if (folder / place / named).is_file()
            ]
            if len(found) > 1:
                listed = " or ".join(str(PurePosixPath(place, named)) for named, place in found[:2])
                raise RecipeError(f"{row.where}: {row.name!r} may be {listed}; write the whole name")
            if found:
                return PurePosixPath(found[0][0]), folder / found[0][1] / found[0][0]
    hint = "; names are relative to it, with /" if name.is_absolute() or "\\" in row.name else ""
    raise RecipeError(f"{row.where}: no file {row.name!r} in {folder}{hint}")


def _index(row: Row, text: str, names: Mapping[str, int], column: str) -> int:
    index = label_index(text, names)
    if index is None:
        is_name = re.search(r"[^\W\d_]", text)
        remedy = "--classes gives names their indices" if is_name and not names else "a whole number from 0 is"
        raise RecipeError(f"{row.where}: the {column} {text[:40]!r} is no class index; {remedy}")
    return index


def read_labels(text: str, where: str) -> dict[str, int]:
    """File name → class index, from a CSV table that lies beside adversarial images.

    Raises:
        RecipeError: It has other columns, or a label is no class index.
    """
    return {row.name: _index(row, row.label, {}, "label") for row in read_csv_rows(text, where)}
